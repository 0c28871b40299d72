"""``hebrew-asr``: one table of subcommands; each lives in ``commands/`` and is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import textwrap

from hebrew_asr.cores import loading_modules
from hebrew_asr.errors import (
    EnvironmentProblem,
    HebrewASRError,
    end_as_by_ctrl_c,
    exit_code_of,
    hear_no_end,
    heard_again,
    nearest,
)
from hebrew_asr.files import disk_fault
from hebrew_asr.streams import give_up_stdout, speak_utf8

COMMANDS = {
    "prepare": "turn the ivrit.ai corpora, or your own folder, into a leak-free training set",
    "index": "write the Arrow file of a manifest, which training maps instead of reading it line by line",
    "join": "one set of several that were prepared apart, here or at URLs, without copying their sound",
    "audit": "decode and check every clip of a prepared set; one HTML page and a JSON file",
    "plan": "memory of each phase, steps and disk of a run, and whether it fits; needs no GPU",
    "doctor": "whether this machine can do a run: GPUs, disk, memory, logins, each with its remedy",
    "train": "start training through the deepspeed launcher, on however many GPUs there are",
    "eval": "WER and CER of a model on a manifest or the leaderboard's sets, with intervals",
    "score": "the same figures for anybody's transcripts",
    "compare": "two systems on the same clips: the difference and its interval",
    "transcribe": "text, subtitles or JSON of audio and video files of any length",
    "serve": "a model over HTTP, as OpenAI's clients ask for transcriptions",
    "average": "the mean of a run's checkpoints as a model, or whichever of mean, last and best has the lowest WER",
    "export": "a model as checked folders for transformers, qwen-asr and vLLM",
    "report": "a run as one HTML page: what was learned, with what proof, what is heard wrong; or two runs compared",
    "runs": "the training runs in a folder: how far each is, its WER, time, cost and hardware",
    "normalize": "normalize lines of Hebrew text from standard input",
    "bench": "measure training speed on this machine, and beside it, on request, that of Hugging Face's Trainer",
    "lr-range": "which learning rates a model and its data bear: the loss while they rise",
    "demo": "make speech, train a tiny model through both phases and transcribe with it",
}

_OTHER_NAMES = {"finetune": "train", "fine-tune": "train", "resume": "train", "check": "doctor", "watch": "report"}
_OTHER_NAMES |= dict.fromkeys(("infer", "inference", "predict", "recognize", "asr"), "transcribe")
"""What other programs call a command."""
_DASHES = "\u2010-\u2015\u2212"  # as a regular expression has them
_USAGE = (
    "usage: hebrew-asr COMMAND [options]\n       hebrew-asr --version\n\n"
    "commands (each has its own --help):\n{rows}\n\n"
    "first: hebrew-asr demo (all of it in small, in minutes), hebrew-asr doctor (what this machine can do)"
)


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code. A user's mistake is one line on stderr, not a traceback."""
    if argv is None:
        speak_utf8()
        end_as_by_ctrl_c()
        code = main(sys.argv[1:])
        hear_no_end()
        return code
    with heard_again():
        return exit_code_of(lambda: _printed(argv))


def _printed(argv: list[str]) -> int:
    """The exit code, when all that was printed is where it goes."""
    try:
        code = _answered(argv)
        sys.stdout.flush()  # at the end of the interpreter a fault would have neither words nor an exit code of ours
        return code
    except OSError as error:
        if (refused := disk_fault(error)) is None:
            raise
        raise EnvironmentProblem(f"{give_up_stdout()}{refused}") from error
    except HebrewASRError:  # told with its own code, though what was printed before goes nowhere
        give_up_stdout()
        raise


def _answered(argv: list[str]) -> int:
    if argv[:1] == ["help"] and argv[1:]:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE.format(rows="\n".join(_row(name, text) for name, text in COMMANDS.items())))
        return 0 if argv else 2
    if argv[0] in ("-V", "--version", "version"):
        print(_versions())
        return 0
    if (mistake := _typeset(argv)) is not None:
        print(f"hebrew-asr: {mistake}", file=sys.stderr)
        return 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        if name.startswith("-"):
            print(f"hebrew-asr: the command comes before {name}. See hebrew-asr --help", file=sys.stderr)
            return 2
        close = _OTHER_NAMES.get(name) or nearest(name, COMMANDS)
        hint = f"; did you mean {close!r}?" if close else "."
        print(f"hebrew-asr: no command {name!r}{hint} See hebrew-asr --help", file=sys.stderr)
        return 2
    return _run(name, rest)


def _row(name: str, text: str) -> str:
    """A command's place in the help: one line, or on a narrow terminal several; one, for grep, where there is none."""
    width = max(40, shutil.get_terminal_size((1000, 24)).columns)
    return textwrap.fill(text, width, initial_indent=f"  {name:<11} ", subsequent_indent=" " * 14)


def _typeset(argv: list[str]) -> str | None:
    """What to say of a command or an option that a word processor or a web page changed; None where there is none.

    Names of files, texts and values may hold such characters. A value that begins as an option does is refused, unless
    it is a file.
    """
    for place, word in enumerate(argv):
        if word == "--":
            return None
        name = word.partition("=")[0]
        is_name = not place or re.match(rf"[-{_DASHES}]{{1,2}}[a-zA-Z]", name)
        found = is_name and not os.path.lexists(word) and re.search(rf"[{_DASHES}]|[^\S ]", name)
        if found:
            kind = "space" if found[0].isspace() else "dash"
            return f"{word!a} holds a typeset {kind} (U+{ord(found[0]):04X}), as pasted text does; type it by hand"
    return None


def _run(name: str, rest: list[str]) -> int:
    with loading_modules():
        from hebrew_asr.config.misplaced import refuse_recipe_keys
        from hebrew_asr.config.options import parse_options

        command = importlib.import_module(f"hebrew_asr.commands.{name.replace('-', '_')}").Command
        refuse_recipe_keys(command, rest)
        try:
            options = parse_options(command, f"hebrew-asr {name}", rest)
        except SystemExit:  # --help
            return 0
    return options.run() or 0


def _versions() -> str:
    """Ours, and those that decide what a run does."""
    from importlib.metadata import PackageNotFoundError, version

    from hebrew_asr import __version__

    found = [f"hebrew-asr {__version__}", f"Python {sys.version.split()[0]}"]
    for package in ("torch", "transformers", "deepspeed"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} is missing")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
