"""Where a run's numbers go: ``metrics.jsonl`` always, Weights & Biases if asked, the console for people.

Nothing here can stop training: a tracker that fails is reported once and then left alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hebrew_asr.recipe import Recipe


class WandbSink:
    """Weights & Biases; offline when there is no login. An outage is reported once and training goes on."""

    def __init__(self, recipe: Recipe, folder: Path, config: dict[str, Any], run_id: str | None):
        """``WANDB_ENTITY``, ``WANDB_PROJECT``, ``WANDB_MODE`` and ``WANDB_API_KEY`` are honoured."""
        self._run: Any = None
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
            self._run = wandb.init(
                entity=os.environ.get("WANDB_ENTITY"),
                project=os.environ.get("WANDB_PROJECT", "hebrew-asr"),
                name=os.environ.get("WANDB_NAME", recipe.name),
                id=run_id,
                resume="allow" if run_id else None,
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                config=config,
            )
        except Exception as error:  # whatever the tracker does, the run goes on
            self._give_up(error)

    @property
    def run_id(self) -> str | None:
        """Its id of this run, for a resume."""
        return None if self._run is None else self._run.id

    def write(self, record: dict[str, Any]) -> None:
        """Log a record under ``{event}/{name}``."""
        if self._run is None:
            return
        event, step = record["event"], record["step"]
        curves = {key: value for key, value in _flat(record).items() if not isinstance(value, list)}
        flat = {f"{event}/{key}": value for key, value in curves.items() if key not in ("event", "step")}
        try:
            self._run.log(flat, step=step)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        print(f"warning: wandb failed ({error}); training goes on, metrics.jsonl has everything", file=sys.stderr)


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Tracker:
    """Fans records out to the sinks; on other ranks than the first it has none and does nothing."""

    def __init__(self, *sinks: Any):
        """``sinks``: objects with ``write(record)`` and ``close()``."""
        self._sinks = sinks

    def write(self, record: dict[str, Any]) -> None:
        """Send one record of the metrics schema to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
