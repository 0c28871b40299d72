"""``hebrew-asr runs``: the runs in a folder, one line each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass
class Command:
    """List training runs: how far each is, its WER, time, cost and hardware.

    $ hebrew-asr runs
    (those in runs/)
    $ hebrew-asr report runs/a runs/b
    (two of them compared)
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder that holds run directories, or a run directory."""
    json: bool = False
    """Print JSON instead."""

    def run(self) -> int:
        from hebrew_asr.errors import DataError
        from hebrew_asr.files import runs_below

        inside = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        found = [path for path in (self.folder, *inside) if _may_be_run(path)]
        if not found:
            here = runs_below(Path())[:3]
            hint = f"; {', '.join(here)} lie{'s' * (len(here) == 1)} here: hebrew-asr runs ." if here else ""
            raise DataError(f"no run in {self.folder}: give the folder that holds run directories{hint}")
        rows = [_row(path) for path in found]
        if self.json:
            print(json.dumps(rows, ensure_ascii=False, indent=1))
        else:
            _print(rows)
        return 0


def _may_be_run(folder: Path) -> bool:
    try:
        return (folder / "metrics.jsonl").is_file()
    except PermissionError:
        return True  # to be listed as one that cannot be read


def _row(folder: Path) -> dict[str, Any]:
    """What a run directory says, as plain values; of one that cannot be read, why."""
    from hebrew_asr.errors import HebrewASRError
    from hebrew_asr.report.gather import read_run
    from hebrew_asr.units import count

    try:
        run = read_run(folder)
    except HebrewASRError as error:
        return {"run": str(folder), "problem": str(error)}
    last = next((record for record in reversed(run.evaluations) if record.split != "sample"), None)
    last = last or next(reversed(run.evaluations), None)
    seconds = run.summary.get("seconds") if run.is_finished else sum(step.step_s for step in run.steps)
    price = run.recipe.get("logging", {}).get("price_per_hour")
    return {
        "run": str(folder),
        "recipe": run.recipe.get("name"),
        "is_finished": run.is_finished,
        "step": run.last_step,
        "steps": run.planned_steps,
        "wer": last and last.wer,
        "wer_of": last and f"{count(last.clips, 'clip')} of {last.split}, {last.wer_mode}",
        "wer_step": last and last.step,
        "seconds": seconds,
        "cost": price * seconds / 3600 if price and seconds is not None else None,
        "devices": run.facts.get("devices"),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from hebrew_asr.pages.words import duration
    from hebrew_asr.streams import print_table

    table = Table()
    for name in ("run", "step", "WER", "measured on", "time", "cost", "devices"):
        table.add_column(name, justify="right" if name in ("step", "WER", "time", "cost") else "left", overflow="fold")
    for row in rows:
        if "problem" in row:
            table.add_row(row["run"], "", "", row["problem"])
            continue
        devices = row["devices"] or []
        wer = "" if row["wer"] is None else f"{row['wer']:.1%}"
        cost = "" if row["cost"] is None else f"{row['cost']:.2f}"
        done = f"{row['step']:,}" if row["is_finished"] else f"{row['step']:,} of {row['steps']:,}"
        hardware = ", ".join(f"{devices.count(name)} × {name}" for name in dict.fromkeys(devices))
        took = "" if row["seconds"] is None else duration(row["seconds"])
        table.add_row(row["run"], done, wer, row["wer_of"] or "", took, cost, hardware)
    print_table(table)
    if any(row.get("is_finished") is False for row in rows):
        print("time of a run that is not finished is that of its steps alone")
