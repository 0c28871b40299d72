"""Where a run's numbers go besides ``metrics.jsonl`` and the console: Weights & Biases, TensorBoard.

Nothing here can stop training: a tracker that fails is reported once and then left alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from hebrew_asr.config.recipe import Recipe
from hebrew_asr.errors import did_you_mean, first_line
from hebrew_asr.logs import log
from hebrew_asr.report.records import EvalRecord, Record, Sample, as_row

_START_S, _LOG_S, _FINISH_S = 60.0, 10.0, 60.0
"""Seconds to wait for a wandb that hangs: at the start, once while training, and at the end."""
_ANSWER_S = 10
"""Seconds that its server gets to answer: one of wandb's own settings."""
_SERVICE = "wandb-core"
"""wandb's process, which talks to the network; it is a child of this one."""

_MODES = ("online", "offline", "disabled", "shared", "run", "dryrun")
"""Those of wandb's settings."""
T = TypeVar("T")


class _WandbError(Exception):
    """wandb raised something, or has not come back in time."""


def _within(seconds: float, call: Callable[[], T]) -> T:
    """``call()`` in a thread, so that it can neither take longer than ``seconds``, nor end this process.

    Raises:
        _WandbError: in words, whatever it raised, ``SystemExit`` too.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="wandb", daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    reason = f"{type(failed[0]).__name__}: {first_line(failed[0])}" if failed else f"no answer in {seconds:g} s"
    raise _WandbError(reason) from (failed[0] if failed else None)


class WandbSink:
    """Weights & Biases: online with a login, offline without one or without a network, left alone once it fails."""

    def __init__(self, recipe: Recipe, folder: Path, facts: dict[str, Any], run_id: str | None):
        """``facts``: what ``run.json`` holds. ``WANDB_ENTITY``, ``_PROJECT``, ``_MODE``, ``_API_KEY`` are honored."""
        self._run: Any = None
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would try for half a minute as the process ends
        options = {
            "entity": os.environ.get("WANDB_ENTITY"),
            "project": os.environ.get("WANDB_PROJECT", "hebrew-asr"),
            "name": os.environ.get("WANDB_NAME", recipe.name),
            "id": run_id,
            "resume": "allow" if run_id else None,
            "dir": str(folder),
            "config": {**recipe.to_dict(), "run": facts},  # apart: both have ``data``
        }
        try:
            self._run, outage = _within(_START_S, lambda: _start(options))
        except _WandbError as error:
            self._give_up(error)
            return
        if outage:
            kept = Path(self._run.settings.sync_dir)
            log.warning("wandb is kept offline (%s); to send it later: wandb sync %s", outage, shlex.quote(str(kept)))

    @property
    def run_id(self) -> str | None:
        """The run's id at Weights & Biases, for a resume."""
        return None if self._run is None else self._run.id

    def write(self, record: Record) -> None:
        """Log a record under ``{event}/{name}``."""
        if self._run is None:
            return
        curves = {key: value for key, value in as_curves(as_row(record)).items() if not isinstance(value, list)}
        flat = {f"{record.event}/{key}": value for key, value in curves.items() if key not in ("event", "step")}
        heard = record.heard if isinstance(record, EvalRecord) else []
        try:
            _within(_LOG_S, lambda: self._run.log(flat | _table(heard), step=record.step))
        except _WandbError as error:
            self._give_up(error)

    def close(self) -> None:
        """Finish the run: what has not reached the server by then stays in the run directory."""
        if self._run is not None:
            try:
                _within(_FINISH_S, self._finish)
            except _WandbError as error:
                self._give_up(error)

    def _finish(self) -> None:
        self._run.finish()
        _teardown()  # else it would be waited for as the interpreter ends, without a limit

    def _give_up(self, error: _WandbError) -> None:
        self._run = None
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.name().startswith(_SERVICE):
                    child.kill()  # stuck, it would be waited for as the interpreter ends
        with contextlib.suppress(_WandbError):
            _within(_ANSWER_S, _teardown)  # which raises now, and else as the interpreter ends
        log.warning("wandb failed (%s); training goes on, metrics.jsonl has everything", error)


def _teardown() -> None:
    import wandb

    wandb.teardown()


def _start(options: dict[str, Any]) -> tuple[Any, str | None]:
    """A run, and why it is offline if it was to be online."""
    import wandb

    mode, outage = os.environ.get("WANDB_MODE"), None
    if mode and mode not in _MODES:
        outage = f"WANDB_MODE is {mode}{did_you_mean(mode, _MODES)}"
        mode = os.environ["WANDB_MODE"] = "offline"  # wandb's settings would not be made with the other
    settings = wandb.Settings(init_timeout=_ANSWER_S, finish_timeout=_FINISH_S / 2, x_graphql_timeout_seconds=_ANSWER_S)
    try:
        mode = mode or ("online" if wandb.login(prompt=False) else "offline")
        if mode != "offline":
            return wandb.init(**options, mode=mode, settings=settings), None  # type: ignore[arg-type]
    except BaseException as error:
        outage = f"{type(error).__name__}: {first_line(error)}"
    return wandb.init(**options, mode="offline", settings=settings), outage


def _table(heard: list[Sample]) -> dict[str, Any]:
    import wandb

    rows: list[Any] = [[sample.id, sample.reference, sample.hypothesis] for sample in heard]
    return {"eval/heard": wandb.Table(columns=["clip", "said", "heard"], data=rows)} if rows else {}


def as_curves(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record without nesting: ``lr/head``, ``power_w/rank0``."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= as_curves(value, f"{prefix}{key}/")
        elif isinstance(value, list) and all(isinstance(each, float) for each in value):  # one of each rank
            flat |= {f"{prefix}{key}/rank{rank}": each for rank, each in enumerate(value)}
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class TensorBoardSink:
    """Event files in ``tensorboard/`` of the run directory: curves under wandb's names, and what was said and heard."""

    def __init__(self, folder: Path, resumed_step: int | None):
        """``resumed_step``: of the checkpoint that the run goes on from; curves of later steps are drawn anew."""
        self._writer: Any = None
        try:
            from tensorboardX import SummaryWriter

            after = None if resumed_step is None else resumed_step + 1
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after)
        except Exception as error:  # of the disk, or of protobuf
            self._give_up(error)

    def write(self, record: Record) -> None:
        """Add a record's numbers under ``{event}/{name}``."""
        if self._writer is None:
            return
        try:
            for key, value in as_curves(as_row(record)).items():
                if key != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{record.event}/{key}", value, record.step)
            for sample in record.heard if isinstance(record, EvalRecord) else ():
                text = f"said: {sample.reference}\n\nheard: {sample.hypothesis}"
                self._writer.add_text(f"eval/{sample.id}", text, record.step)
            self._writer.flush()
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """End the event file."""
        with contextlib.suppress(Exception):
            if self._writer is not None:
                self._writer.close()

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        log.warning("TensorBoard's files failed (%s); training goes on without them", first_line(error))


class Tracker:
    """Fans records out to the sinks; on other ranks than the first it has none and does nothing."""

    def __init__(self, *sinks: Any):
        """``sinks``: objects with ``write(record)`` and ``close()``."""
        self._sinks = sinks

    def write(self, record: Record) -> None:
        """Send one record to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Close every sink, the last one first: it may still write to those before it."""
        for sink in reversed(self._sinks):
            sink.close()
