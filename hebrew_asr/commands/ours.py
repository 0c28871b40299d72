"""What commands may overwrite or remove: files of their own making, told by a mark, and nothing else."""

from __future__ import annotations

import atexit
import os
import re
import shutil
from pathlib import Path
from typing import Any

from hebrew_asr.corpus.preparation.output import is_of_prepare
from hebrew_asr.errors import EnvironmentProblem, UsageError
from hebrew_asr.files import as_os_error, remover_if_empty, values_if_readable, write_json
from hebrew_asr.training.arguments import lock_of

DEMO_MARK = "demo.json"
"""Says that a folder is a run of the demo, and what it was made from."""

_MARK_BYTES = 1 << 16
_DEMO_FILES = re.compile(
    "|".join(
        (
            r"(demo|recipe|deepspeed|run|summary)\.json|metrics\.jsonl|report\.html|STOP|lock",
            r"(\.(tmp|old)-)?(base|final)/((config|generation_config|pieces|processor_config|tokenizer|tokenizer_config)"
            r"\.json|chat_template\.jinja|model\.safetensors)",
            r"data/(train|eval)\.jsonl",
            r"samples/step-\d+-(eval|sample|best|mean)\.jsonl",
            r"checkpoints/(\.tmp-)?step-\d+(\.damaged\d*)?/(optimizer-rank\d+\.safetensors|(state|COMPLETE|eval)\.json)",
            r"crash/rank\d+/(error\.txt|batch\.json|memory\.txt)",
            r"tensorboard/events\.out\.tfevents\..*",
            r"wandb/((offline-)?run-\d{8}_\d{6}-\w+/.*|latest-run|debug(-\w+)*\.log|settings)",
        )
    )
)
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")  # of files.write_atomically


def refuse_overwriting(path: Path, mark: str) -> None:
    """Let a command write ``path`` where nothing is yet, or a file that has ``mark`` in its first 64 KiB.

    Raises:
        UsageError: it is another file, or no file.
    """
    if not os.path.lexists(path):
        return
    if path.is_file():
        with path.open("rb") as stream:
            if mark.encode() in stream.read(_MARK_BYTES):
                return
    raise UsageError(f"{path} exists and was not made by this command: it stays as it is; choose another name")


def refuse_if_taken(out: Path) -> None:
    """Let a command make ``out`` where nothing is yet, or an empty folder, and make the folders above it.

    Raises:
        UsageError: there is something else, or it is the folder that one is in, which would be another afterwards.
        EnvironmentProblem: it cannot be made there.
    """
    if out.exists() and out.samefile("."):
        raise UsageError(f"--out {out} is the folder you are in, which cannot be replaced: name one inside it")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there already and not empty; give --out another name, or remove it first")
    make_folder(out.parent)


def refuse_other_results(out: Path, of: dict[str, Any]) -> None:
    """Let a command write what was heard anew, but not over what was heard of something else.

    Args:
        out: folder of hypotheses and what ``report.clip_page.write_results`` writes.
        of: what the figures must say of themselves; None is what they do not say.

    Raises:
        UsageError: they say something else, or there is a file of one of these names without figures.
    """
    from hebrew_asr.report.clip_page import FIGURES, RESULTS

    if not any(os.path.lexists(out / name) for name in RESULTS):
        return
    told = values_if_readable(out / FIGURES)
    if not told or any(told.get(key) != value for key, value in of.items()):
        whose = f"of {told['model']} on {told.get('data')}" if "model" in told else "of something else"
        raise UsageError(f"{out} holds results {whose}, which stay; give --out another name, or remove them")


def make_folder(out: Path) -> None:
    """Make a folder for what a command writes, and find before its hours of work that it can be written.

    If nothing is written, the command's end removes it.

    Raises:
        EnvironmentProblem: it cannot.
    """
    atexit.register(remover_if_empty(out))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = as_os_error(error).strerror
        raise EnvironmentProblem(f"cannot make the folder: {why}; give another place") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise EnvironmentProblem(f"cannot write to {out}: it is read-only, or another user's; give another place")


def claim_demo_folder(folder: Path, made_from: dict[str, Any], *, fresh: bool) -> None:
    """Make ``folder`` the place of a demo run, or find that it is the place of this one.

    Args:
        folder: need not exist.
        made_from: JSON values, kept in ``demo.json``: ``data``, where the run's data lay, and anything that tells it
            from other data.
        fresh: remove what an earlier run left there, whatever it was made from.

    Raises:
        UsageError: the folder is of another making, or holds a run of other data, or something that no run of the demo
            writes. Nothing was removed.
        EnvironmentProblem: the folder cannot be written, or not be emptied.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            was = _demo_mark(folder)
            if fresh:
                _empty(folder)
            elif {**was, "data": None} != {**made_from, "data": None} and files_below(folder) != [DEMO_MARK]:
                raise UsageError(
                    f"{folder} holds a run of the demo on {was.get('data') or 'synthetic speech'}, which is not the "
                    f"data asked for, or has changed since: --fresh removes it and trains anew, --out keeps both"
                )
            elif was == made_from:
                return
        write_json(folder / DEMO_MARK, made_from)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write to {folder}: {error}") from error


def _demo_mark(folder: Path) -> dict[str, Any]:
    if "data" in (mark := values_if_readable(folder / DEMO_MARK)):
        return mark
    raise UsageError(f"{folder} is not a run of the demo (no readable {DEMO_MARK} in it): choose another --out")


def _empty(folder: Path) -> None:
    """Remove a run of the demo but for its mark, without which a second try would take the rest for a stranger's."""
    lock_of(folder).refuse_if_held(str(folder), is_main=True)
    if foreign := [name for name in files_below(folder) if not is_of_demo(name)]:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UsageError(
            f"{folder} holds {', '.join(foreign[:3])}{more}, which the demo did not write: nothing was removed; move "
            f"your files away, or choose another --out"
        )
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != DEMO_MARK:
            path.unlink()


def files_below(folder: Path) -> list[str]:
    """Everything but folders, as paths relative to ``folder``; a link is not followed."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def is_of_demo(relative: str) -> bool:
    """Whether a run of the demo gives a file this path within its folder."""
    folder, slash, name = relative.rpartition("/")
    if temporary := _TEMPORARY.fullmatch(name):
        return is_of_demo(f"{folder}{slash}{temporary[1]}")
    top, _, rest = relative.partition("/")
    return is_of_prepare(rest) if top == "prepared" else _DEMO_FILES.fullmatch(relative) is not None
