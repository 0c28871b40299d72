"""``hebrew-asr``: one table of subcommands; each lives in ``commands/`` and is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from hebrew_asr.errors import HebrewASRError, Preempted
from hebrew_asr.streams import speak_utf8

Options = TypeVar("Options")

COMMANDS = {
    "prepare": "turn the ivrit.ai corpora, or your own folder, into a leak-free training set",
    "audit": "decode and check every clip of a prepared set; one HTML page and a JSON file",
    "plan": "memory of each phase, steps and disk of a run, and whether it fits; needs no GPU",
    "train": "start training through the deepspeed launcher, on however many GPUs there are",
    "eval": "WER and CER of a model on a manifest, with a confidence interval",
    "transcribe": "print the text of audio files",
    "export": "a model as checked folders for transformers, qwen-asr and vLLM",
    "report": "a run as one HTML page: what was learned, with what proof, what is heard wrong",
    "normalize": "normalize lines of Hebrew text from standard input",
    "bench": "measure training speed on this machine, and the usual way beside it",
    "demo": "make speech, train a tiny model through both phases and transcribe with it",
}

_USAGE = "usage: hebrew-asr COMMAND [options]\n\ncommands (each has its own --help):\n{rows}\n"


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code. A user's mistake is one line on stderr, not a traceback."""
    if argv is None:
        speak_utf8()
        argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE.format(rows="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())))
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"hebrew-asr: no command {name!r}{hint} See hebrew-asr --help", file=sys.stderr)
        return 2
    return guarded(lambda: _run(name, rest))


def _run(name: str, rest: list[str]) -> int:
    command = importlib.import_module(f"hebrew_asr.commands.{name}").Command
    return parse_options(command, f"hebrew-asr {name}", rest).run() or 0


def parse_options(options: type[Options], program: str, argv: list[str]) -> Options:
    """A command's dataclass of options from its command line, within the bounds beside its fields.

    Raises:
        UsageError: some option is out of bounds.
    """
    import tyro

    from hebrew_asr.config.values import check_options

    parsed = tyro.cli(options, prog=program, args=with_bare_resume(argv))
    check_options(parsed)
    return parsed


def with_bare_resume(argv: list[str]) -> list[str]:
    """``--resume`` without a value means ``--resume auto``."""
    bare = [i for i, part in enumerate(argv) if part == "--resume" and argv[i + 1 : i + 2] not in (["auto"], ["never"])]
    return [filled for i, part in enumerate(argv) for filled in ([part, "auto"] if i in bare else [part])]


def guarded(run: Callable[[], int], quiet: Callable[[HebrewASRError], bool] = lambda _: False) -> int:
    """Call ``run``; our own errors become one line and an exit code. ``quiet``: whether another process tells one."""
    try:
        return run()
    except HebrewASRError as error:
        if not quiet(error):
            kind = "" if isinstance(error, Preempted) else "error: "
            print(f"{kind}{error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
