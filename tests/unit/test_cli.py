"""The command line: one table, light help, near misses told, a bare --resume."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hebrew_asr.cli import COMMANDS, main
from hebrew_asr.commands.bench import Command as Benching
from hebrew_asr.commands.export import Command as Exporting
from hebrew_asr.commands.score import Command as Scoring
from hebrew_asr.config.misplaced import refuse_recipe_keys
from hebrew_asr.config.options import option_names, parse_options
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.manifest import write_manifest
from hebrew_asr.errors import DataError, UsageError, exit_code_of
from hebrew_asr.text.prompt import build_target
from hebrew_asr.training.arguments import TrainArguments, as_argv
from tests.support.disks import fill, remount, small_disk
from tests.support.terminal import CTRL_C, Terminal

COMMANDS_DIR = Path(__file__).parents[2] / "hebrew_asr" / "commands"


def test_every_subcommand_is_listed_and_exists(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert not [name for name, text in COMMANDS.items() if f"  {name:<11} {text}\n" not in listed]
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["--help"]) == 0
    rows = capsys.readouterr().out.partition("commands")[2].partition("first:")[0].splitlines()
    assert max(map(len, rows)) <= 60 and all(row.startswith((" " * 14, "  ")) for row in rows[1:] if row)
    written = {path.stem for path in COMMANDS_DIR.glob("*.py") if path.stem not in ("__init__", "ours", "ranks")}
    assert written == {name.replace("-", "_") for name in COMMANDS}


def test_help_of_a_command_has_two_spellings(capsys):
    told = []
    for typed in (["help", "runs"], ["runs", "--help"]):
        assert main(typed) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and told[0].startswith("usage: hebrew-asr runs")
    assert main(["help", "rums"]) == 2 and "did you mean 'runs'" in capsys.readouterr().err


NEAR = {
    "trian": "train",
    "evaluate": "eval",
    "lr_range": "lr-range",
    "finetune": "train",
    "predict": "transcribe",
    "train --ds cpu --resum": "--resume",
    "plan --d cpu": "--ds",
    "plan --ds cpu --gpus 0": "--num-gpus",
    "plan --ds cpu --price 12": "--price-per-hour",
    "transcribe --modle x a.mp3": "--model",
    "runs --jsn": "--json",
    "plan --ds a100x88": "a100x8",
    "plan --ds cpu --recipe Ronud2": "round2",
    "plan --ds cpu --set optimzer.weight_decay=1": "optimizer",
    "plan --ds cpu --set optimizer.weight_deacy=1": "weight_decay",
    "plan --ds cpu --set phases.0.epoch=1": "epochs",
    "plan --ds cpu --set epochs=1": "phases.0.epochs",
    "plan --ds cpu --set lr=1e-4": "phases.0.learning_rates",
    "plan --ds cpu --set phases.0.learning_rates.haed=1e-4": "head",
    "plan --ds cpu --set unfrozen_layers.llm_tpo=3": "llm_top",
    "prepare --source recordngs": "recordings",
    "transcribe --model x --language Hebrw a.mp3": "Hebrew",
    "eval --model x --set evald1": "eval-d1",
}
"""What is typed, and what is meant."""


@pytest.mark.parametrize("typed", NEAR)
def test_what_is_misspelled_is_told_the_nearest(typed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").mkdir()
    assert main(typed.split()) == 2
    told = capsys.readouterr().err
    assert re.search(rf"[Dd]id you mean '?{re.escape(NEAR[typed])}\b", told) and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["train", "\u2013-ds", "cpu"], "typeset dash (U+2013)"),
        (["train", "\u2014ds", "cpu"], "typeset dash (U+2014)"),
        (["train", "--ds\u00a0cpu"], "typeset space (U+00A0)"),
        (["train\u00a0--ds", "cpu"], "typeset space (U+00A0)"),
        (["--model", "run", "transcribe"], "the command comes before --model"),
        (["eval", "-m", "m"], "one or more sets of the leaderboard\n"),
        (["eval", "-m", "m", "--data", "a.jsonl", "--set", "fleurs"], "sets of the leaderboard, not both\n"),
    ],
)
def test_what_a_command_line_cannot_mean_is_told(typed, told, capsys):
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_typeset_characters_in_names_of_files_are_left_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("\u2013 שיחה.txt", "\u2013a.txt"):
        (tmp_path / name).write_text("שלום")
        main(["score", name])
        assert "typeset" not in capsys.readouterr().err
    main(["score", "a\u00a0b.csv"])
    assert "typeset" not in capsys.readouterr().err


def test_places_in_a_list_are_told(capsys):
    assert main(["plan", "--ds", "cpu", "--set", "phases.B.epochs=1"]) == 2
    assert "phases has no B; its parts are phases.0 to phases.1" in capsys.readouterr().err
    assert main(["plan", "--ds", "cpu", "--set", "model.name=x"]) == 2
    assert "round2.json with --set: unknown key model.name" in capsys.readouterr().err


def test_transcribe_takes_the_names_of_whispers_options(capsys):
    whisper = ["-m", "m", "-l", "iw", "--output_format", "srt", "--output_dir", "o", "--initial_prompt", "x"]
    for options in (whisper, ["--model", "m", "-f", "all", "-o", "o", "--batch-size", "8"]):
        assert main(["transcribe", "gone.wav", *options]) == 3
        assert capsys.readouterr().err == "error: cannot use audio gone.wav: file not found\n"
    for lacking, told in (("--word_timestamps", "times are those of segments"), ("--temperature=0", "greedy")):
        assert main(["transcribe", "gone.wav", "-m", "m", lacking]) == 2
        assert told in capsys.readouterr().err
    assert main(["transcribe", "gone.wav", "-m", "m", "-f", "all"]) == 2
    assert "give --out" in capsys.readouterr().err


def test_what_a_command_writes_is_named_by_one_letter_too(capsys):
    letters = {}
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        letters |= dict.fromkeys(
            re.findall(r"^\W*((?:-o \w+, )?--out)\b", capsys.readouterr().out, re.MULTILINE), command
        )
    assert [*letters] == ["-o PATH, --out", "-o STR, --out"], letters


def test_transcribe_reads_no_url_and_says_so(capsys):
    for url in ("https://example.com/a.mp3", "https://example.com/a.mp3?token=x"):
        assert main(["transcribe", url, "-m", "m"]) == 3
        told = f"error: cannot use audio {url}: no URL is read here; download it first, and give the file\n"
        assert capsys.readouterr().err == told


def test_keys_of_a_recipe_that_are_options_too_are_let_through():
    refuse_recipe_keys(TrainArguments, ["--data", "x", "--run=y", "--set", "seed=1", "--", "--lr"])
    refuse_recipe_keys(Benching, ["--model", "x"])
    refuse_recipe_keys(Exporting, ["--lr"])


def test_an_option_of_several_values_is_given_once(capsys):
    assert main(["prepare", "--source", "one", "--source", "two"]) == 2
    assert "name all after one --source" in capsys.readouterr().err
    assert main(["prepare", "--exclude", "one", "--exclude", "two"]) == 2
    assert "name all after one --exclude" in capsys.readouterr().err


def test_prepare_writes_to_no_url(capsys):
    assert main(["prepare", "--source", "one", "--out", "s3://bucket/set"]) == 2
    assert "--out s3://bucket/set is a URL: prepare writes here" in capsys.readouterr().err


def test_a_set_is_not_prepared_into_its_own_source(tmp_path, monkeypatch, capsys):
    """Which would be read as more of it the next time."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["prepare", "--source", ".", "--out", "set"]) == 2
    assert "--out set lies in the source ., whose next reader" in capsys.readouterr().err
    assert not any(tmp_path.rglob("set"))


def test_errors_become_one_line_and_a_code(capsys):
    def fail() -> int:
        raise DataError("audio file not found: x.wav")

    assert exit_code_of(fail) == 3
    assert capsys.readouterr().err == "error: audio file not found: x.wav\n"
    assert exit_code_of(fail, quiet=lambda _: True) == 3
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--resume"], "auto"),
        (["--resume", "--set", "a=1"], "auto"),
        (["--resume", "auto"], "auto"),
        (["--resume=never"], "never"),
        ([], "never"),
    ],
)
def test_a_bare_resume_means_auto(given, meant):
    parsed = parse_options(TrainArguments, "train.py", ["--ds", "x.json", *given])
    assert parsed.resume == meant
    assert parse_options(TrainArguments, "train.py", as_argv(parsed, TrainArguments)) == parsed


@pytest.mark.parametrize("given", [["maybe"], ["auto", "never"]])
def test_a_resume_of_another_kind_is_refused(given):
    with pytest.raises(UsageError, match="auto, never, or nothing"):
        parse_options(TrainArguments, "train.py", ["--ds", "x.json", "--resume", *given])


@pytest.mark.parametrize("columns", ["80", "20"])
@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("plan --ds cpu --price-per-hour 12,5", "--price-per-hour must be a number, such as 12.5, not '12,5'"),
        ("plan --ds cpu --price-per-hour=free", "--price-per-hour must be a number, such as 12.5, not 'free'"),
        ("serve --model x --port http", "--port must be a whole number, not 'http'"),
        (
            "average x --out y --steps 10 1,5",
            "Error parsing --steps: Could not find valid parse for arguments: ['10', '1,",
        ),
        ("transcribe x.mp3", "Missing from hebrew-asr transcribe: -m, --model (see hebrew-asr transcribe"),
        ("transcribe x --model", "Missing value for argument '-m/--model'. Expected 1 value (see"),
        ("eval --mode hard", "invalid choice 'hard' for argument '--mode'. Expected one of ('strict', "),
        ("runs a b", "Unrecognized options: b (see hebrew-asr runs --help)"),
    ],
)
def test_a_value_that_cannot_be_is_told_in_a_line(typed, told, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(typed.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {told}") and error.count("\n") == 1


def test_a_disk_that_refuses_is_the_machines_fault(tmp_path, capsys):
    (tmp_path / "said.txt").write_text("שלום עולם\n")
    typed = ["score", str(tmp_path / "said.txt"), str(tmp_path / "said.txt"), "--out"]
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        assert main([*typed, str(disk / "heard")]) == 4
        told = capsys.readouterr().err
        where = f"{disk}/heard/hypotheses.jsonl"
        assert told == f"error: No space left on device: {where}; make room there, or give another place\n"


def test_a_file_in_the_place_of_a_folder_is_told_in_a_line(tmp_path, capsys):
    (tmp_path / "said.txt").write_text("שלום עולם\n")
    typed = ["score", str(tmp_path / "said.txt"), str(tmp_path / "said.txt"), "--out"]
    for out, told in (("said.txt", "File exists"), ("said.txt/heard", "Not a directory")):
        assert main([*typed, str(tmp_path / out)]) == 4
        assert capsys.readouterr().err == f"error: {told}: {tmp_path}/{out}; give another place\n"
    assert (tmp_path / "said.txt").read_text() == "שלום עולם\n"


@pytest.mark.parametrize(
    "words", [["audit"], ["join"], ["plan", "--data"], ["train", "--data"]], ids=lambda words: words[0]
)
def test_a_manifest_in_the_place_of_a_set_is_told_with_the_folder(words, tmp_path, capfd):
    command, *option = words
    needed = {
        "join": [str(tmp_path), "--out", str(tmp_path / "both")],
        "plan": ["--ds", "a100x8"],
        "train": ["--ds", "cpu"],
    }
    for name, told in (("train", "give"), ("mine", "name it train.jsonl and give")):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("{}\n")
        assert main([command, *option, str(file), *needed.get(command, [])]) == 2
        told = f"error: {file} is a file, and a set is a folder: {told} {tmp_path}\n"
        assert capfd.readouterr().err.endswith(told)


@pytest.mark.parametrize("name", ["hypotheses.jsonl", "figures.json", "clips.csv", "clips.html"])
def test_results_do_not_take_the_place_of_a_file_of_something_else(name, tmp_path, capsys):
    (tmp_path / "said.txt").write_text("שלום עולם\n")
    typed = ["score", str(tmp_path / "said.txt"), str(tmp_path / "said.txt"), "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"model": "m", "clips_per_s": 1}')
    assert main(typed) == 2 and "holds results of " in capsys.readouterr().err
    assert [(file.name, file.stat().st_size) for file in (tmp_path / "out").iterdir()] == [(name, 32)]
    (tmp_path / "out" / name).unlink()
    assert main(typed) == 0 == main(typed), "its own are written anew"


@pytest.mark.parametrize("place", ["said.txt", "said.txt/heard", "folder"])
def test_where_hypotheses_cannot_go_is_told_before_anything_is_decoded(place, tmp_path, capsys):
    (tmp_path / "said.txt").write_text("שלום עולם\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.wav").write_bytes(b"sound")
    clips = tmp_path / "eval.jsonl"
    write_manifest(clips, [Clip("a.wav", build_target("שלום"), "a", 1.5)])
    typed = ["eval", "--model", str(tmp_path), "--data", str(clips), "--hypotheses"]
    assert main([*typed, str(tmp_path / place)]) == (4 if "/" in place else 2), "5 is a model that cannot be loaded"
    assert ("cannot make the folder" if "/" in place else "it stays as it is") in capsys.readouterr().err
    assert (tmp_path / "said.txt").read_text() == "שלום עולם\n"


def test_an_audit_that_could_not_be_written_is_not_begun(tmp_path, capsys):
    for name in ("page.txt", "train.jsonl"):
        (tmp_path / name).write_text("")
    assert main(["audit", str(tmp_path), "--out", str(tmp_path / "page.txt")]) == 4
    assert (
        capsys.readouterr().err
        == f"error: cannot make the folder: File exists: {tmp_path}/page.txt; give another place\n"
    )


def test_an_audit_of_what_is_no_set_makes_no_folder(tmp_path):
    (tmp_path / "page.txt").write_text("")
    assert main(["audit", str(tmp_path / "page.txt"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "typed",
    [
        *("average run --out {}", "export model --out {}", "join first second --out {}"),
        *("bench --ds cpu --out {}", "bench --ds cpu --traces {}", "lr-range --ds cpu --out {}"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_any_work(typed, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "64k") as disk:
        remount(disk, "ro")
        assert main(typed.format(disk / "out").split()) == 4
    told = capsys.readouterr().err
    assert told.startswith("error: cannot ") and f" {disk}" in told and "give another place" in told, told


def test_a_disk_that_takes_no_change_is_told_with_the_name_that_was_asked_for(tmp_path, capsys):
    (tmp_path / "said.txt").write_text("שלום עולם\n")
    with small_disk(tmp_path / "disk", "64k") as disk:
        remount(disk, "ro")
        assert main(["score", *[str(tmp_path / "said.txt")] * 2, "--out", str(disk)]) == 4
    assert capsys.readouterr().err.startswith(f"error: Read-only file system: {disk}/hypotheses.jsonl; give another")


def test_options_survive_the_launcher():
    given = TrainArguments(
        ds="a b.json", recipe="-odd", set=["model.path=x y", "--z=1"], run_dir="--run", resume="auto"
    )
    assert parse_options(TrainArguments, "train.py", as_argv(given, TrainArguments)) == given


def test_a_reader_that_leaves_is_no_traceback():
    script = f"{sys.executable} -m hebrew_asr normalize | head -n 1"
    lines = "שלום\n" * 50_000
    done = subprocess.run(["bash", "-c", script], input=lines, capture_output=True, text=True, check=False)
    assert done.stdout == "שלום\n"
    assert not done.stderr


@pytest.mark.parametrize(
    ("typed", "code"), [("plan --ds a100x8", 141), ("plan --ds a100x8 2>&1", 141), ("plan --ds none 2>&1", 2)]
)
def test_a_reader_that_leaves_a_table_or_an_error_changes_no_code(typed, code):
    script = f"{sys.executable} -m hebrew_asr {typed} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_ctrl_c_where_python_ignores_it_is_heard_again(monkeypatch, capsys):
    """As in a ``__del__`` of a regular expression: average went on to its end."""

    class Slow:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def decode(_):
        Slow()
        time.sleep(30)

    started = time.monotonic()
    monkeypatch.setattr(Scoring, "run", decode)
    assert main(["score", "said.txt"]) == 130
    assert time.monotonic() - started < 20 and capsys.readouterr().err == "interrupted\n"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # main ignores these from "interrupted" on
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("errors.Preempted('stopped')", 75)])
def test_ctrl_c_that_is_held_leaves_as_that_pressed_once(error, code, tmp_path):
    script = (
        "import sys; from hebrew_asr import errors; errors.TERMINAL_FLUSH_S = 2.0\n"
        f"def run(): print('asked', flush=True); raise {error}\n"
        "sys.exit(errors.exit_code_of(run))"
    )
    line, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(COMMANDS_DIR.parents[1])}
    terminal = Terminal(line, environment=environment, folder=tmp_path)
    while "asked" not in terminal.text:
        time.sleep(0.01)
    for _ in range(5):
        time.sleep(0.1)
        terminal.type(CTRL_C)
    assert terminal.process.wait(30) == code
    terminal.drain()
    assert "Traceback" not in terminal.text


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback(tmp_path):
    line = [sys.executable, "-X", "importtime", "-m", "hebrew_asr", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(COMMANDS_DIR.parents[1])}
    terminal = Terminal(line, environment=environment, folder=tmp_path)
    while "multiprocessing.process" not in terminal.text:
        time.sleep(0.001)
    terminal.type(CTRL_C)
    assert terminal.process.wait(30) in (-signal.SIGINT, 128 + signal.SIGINT)
    terminal.drain()
    assert "Traceback" not in terminal.text


def started(folder: Path, *run: str) -> Terminal:
    """``hebrew-asr score`` in a terminal, which runs these lines."""
    lines = ["import atexit, os, signal, sys, time", "from hebrew_asr import cli, commands", "def run(self):"]
    lines += [*(f"    {line}" for line in run), "import hebrew_asr.commands.score as score", "score.Command.run = run"]
    (folder / "script.py").write_text(
        "\n".join([*lines, "sys.argv[1:] = ['score', 'said.txt']", "sys.exit(cli.main())"])
    )
    environment = {**os.environ, "PYTHONPATH": str(COMMANDS_DIR.parents[1]), "TERM": "xterm"}
    terminal = Terminal([sys.executable, "-m", "script"], environment=environment, folder=folder)
    while "begun" not in terminal.text and terminal.process.poll() is None:
        time.sleep(0.01)
    return terminal


def test_sigterm_in_a_text_that_is_executed_gives_its_own_code(tmp_path):
    """As while a dataclass is made. Python ended itself by SIGINT, as if Ctrl-C had been pressed."""
    terminal = started(tmp_path, "exec('print(\"begun\"); os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)')")
    assert terminal.process.wait(30) == 128 + signal.SIGTERM
    terminal.drain()
    assert terminal.text == "begun\nended by SIGTERM\n"


def test_sigterm_while_what_is_printed_is_read_gives_its_own_code(tmp_path):
    """As while options are parsed."""
    terminal = started(
        tmp_path,
        "import contextlib, io",
        "with contextlib.redirect_stdout(io.StringIO()):",
        "    print('begun', file=sys.stderr)",
        "    os.kill(os.getpid(), signal.SIGTERM)",
    )
    assert terminal.process.wait(30) == 128 + signal.SIGTERM
    terminal.drain()
    assert terminal.text == "begun\nended by SIGTERM\n"


def test_a_signal_that_comes_twice_undoes_once(tmp_path):
    """As timeout(1) sends it. The second broke into what the first had begun: the cursor stayed hidden."""
    ask = "os.kill(os.getpid(), signal.SIGTERM)"
    terminal = started(tmp_path, "try:", f"    {ask}", "finally:", f"    {ask}", "    print('begun to undo')")
    assert terminal.process.wait(30) == 128 + signal.SIGTERM
    terminal.drain()
    assert terminal.text == "begun to undo\nended by SIGTERM\n"


def test_a_terminal_that_is_gone_gives_the_code_of_its_signal_whatever_is_shown_on_it(tmp_path):
    terminal = started(
        tmp_path,
        "from hebrew_asr.inference.progress import sound_progress",
        "with sound_progress(60.0) as bar:",
        "    print('half a line, begun', end='')",
        "    bar.tell('begun')",
        "    time.sleep(30)",
    )
    terminal.hang_up()
    assert terminal.process.wait(20) == 128 + signal.SIGHUP


def test_ctrl_c_when_all_is_told_is_no_traceback(tmp_path):
    """The interpreter's own end takes a second and more where torch is loaded."""
    terminal = started(tmp_path, "atexit.register(time.sleep, 1)", "atexit.register(print, 'begun', flush=True)")
    terminal.type(CTRL_C)
    assert terminal.process.wait(30) == 0
    terminal.drain()
    assert "KeyboardInterrupt" not in terminal.text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_says_no_more_than_there_is(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if len(line) > 60 and not line.startswith(("$", "usage: "))]
    assert not re.search(r"\{\[|None|\(default: *(True|False)?\)|``|\n\n\n", told)


@pytest.mark.parametrize(("no_color", "is_colored"), [("", True), ("1", False)])
def test_help_is_colored_on_a_terminal_unless_the_user_wants_none(no_color, is_colored):
    script = f"TERM=xterm NO_COLOR={no_color} {sys.executable} -m hebrew_asr.cli runs --help"
    shown = subprocess.run(["script", "-qec", script, "/dev/null"], capture_output=True, text=True, check=True).stdout
    assert "List training runs" in shown and ("\x1b[" in shown) == is_colored


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("export m --check -o x", "--out has no effect with --check"),
        ("export m --check --dtype float16", "--dtype has no effect with --check"),
        ("export m -o x --really", "--really has no effect without --push"),
        ("transcribe a.wav -m m --overwrite", "--overwrite has no effect without --out"),
        ("transcribe a.wav -m m -o x --overwrite --skip-existing", "--overwrite has no effect with --skip-existing"),
        (
            "transcribe a.wav -m m --batch 2 --condition-on-previous",
            "--batch has no effect with --condition-on-previous",
        ),
        ("transcribe a.wav -m m --json -f srt", "--json and --format srt would both go to stdout"),
        ("eval -m m --set eval-d1 --allow-outside", "--allow-outside has no effect without --data"),
        ("eval -m m --data a.jsonl --mode lenient", "--mode has no effect without --json or --out"),
        ("average m -o x --data a.jsonl", "--data has no effect without --choose"),
        ("bench --ds cpu --baseline-steps 5", "--baseline-steps has no effect without --baseline"),
        ("prepare --split random --hold-out episode", "--hold-out has no effect with --split random"),
        ("prepare --processes 2 --workers-on tcp://a:1", "--processes has no effect with --workers-on"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_by_name(typed, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").touch()
    assert main(typed.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {told}")
    assert [*tmp_path.iterdir()] == [tmp_path / "a.wav"]


def test_every_option_that_is_named_as_ignored_is_one():
    for name in COMMANDS:
        command = importlib.import_module(f"hebrew_asr.commands.{name.replace('-', '_')}").Command
        for line in getattr(command, "IDLE", ()):
            option, beside, *others = line.replace(" or ", " ").split()
            assert beside in ("with", "without") and others
            assert {option, *(other.partition("=")[0] for other in others)} <= {*option_names(command)}, line


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["serve", "--model", "m", "--host", ""], "--host is empty"),
        (["serve", "--model", ""], "--model is empty"),
        (["transcribe", "--model", "", "a.wav"], "--model is empty"),
        (["eval", "--model", "", "--data", "a.jsonl"], "--model is empty"),
        (["eval", "--model", "m", "--data", "a.jsonl", "--out", ""], "--out is empty"),
        (["eval", "--model", "m", "--data", "a.jsonl", "-o", ""], "--out is empty"),
        (["eval", "--model", "m", "--data="], "--data is empty"),
        (["transcribe", "--model", "m", "a.wav", "--out="], "--out is empty"),
        (["transcribe", "--model", "m", "a.wav", ""], "files is empty"),
        (["train", "--ds", "cpu", "--run", ""], "--run is empty"),
        (["score", "a", "", "--json"], "hypothesis is empty"),
        (["runs", ""], "folder is empty"),
    ],
)
def test_a_variable_that_the_shell_does_not_know_is_told(typed, told, capsys):
    """An empty host would let every machine in, and an empty model is the folder one is in."""
    assert main(typed) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("prepare --source dead --out new", 2, "source dead: a link that leads nowhere (to none)"),
        ("prepare --source below/dead --out new", 2, "source below/dead: a link that leads nowhere (to none)"),
        ("prepare --source dead/x --out new", 2, "source dead/x: dead is a link that leads nowhere (to none)"),
        ("prepare --source here --out dead", 4, "cannot write to dead: a link that leads nowhere: dead"),
        ("prepare --source here --out loop", 4, "cannot write to loop: Too many levels of symbolic links"),
        ("prepare --source here --out loop/new", 4, "cannot write to loop/new: Too many levels of symbolic links"),
        ("prepare --source here --out loop --workers-on tcp://127.0.0.1:1", 4, "Too many levels of symbolic links"),
        ("demo --data here --out loop/new", 3, "no recording in it"),
        ("join loop here --out new", 3, "loop/train.jsonl"),
        ("export here --out dead/new", 4, "cannot make the folder: a link that leads nowhere: dead; give another"),
    ],
)
def test_links_that_lead_nowhere_are_told_as_such(line, code, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "below"):
        Path(folder).mkdir()
        Path(folder, "dead").symlink_to("none")
    Path("dead").symlink_to("none")
    Path("loop").symlink_to("loop")
    assert main(line.split()) == code
    assert told in capsys.readouterr().err
