"""What lies in ``launch/``: dry runs, how a run is judged, and that shells and YAML readers take the files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
import yaml

from hebrew_asr.commands.doctor import Command as Doctor
from hebrew_asr.commands.train import Command as Train
from hebrew_asr.config.options import parse_options
from hebrew_asr.config.profiles import load_profile
from hebrew_asr.training.arguments import TrainArguments
from tests.support.terminal import CTRL_C, Terminal, processes_of

ROOT = Path(__file__).parents[2]
SCRIPTS = ("train", "slurm.sbatch", "demo", "test", "setup.sh", "environment.sh")
OPTIONS = ["--ds", "a100x8", "--set", "data.folder=/some where", "--run", "runs/one two"]


def shell(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *words], capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize("script", ["train", "slurm.sbatch"])
@pytest.mark.parametrize(
    "options",
    [
        *(OPTIONS, ["--ds=a100x8", "--data=my set"], ["--ds", "cpu", "--recipe", "round2.json"]),
        *(["--ds", "h200x1", "--recipe", name] for name in ("full", "round2-long", "0.6b")),
    ],
)
def test_a_dry_run_says_commands_that_parse(script, options):
    done = shell(f"launch/{script}", "--dry-run", *options)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    doctor, train = lines[-2:]
    looked = parse_options(Doctor, "doctor", doctor[doctor.index("doctor") + 1 :])
    marks = ("train", "hebrew_asr/train.py")
    start = next(place for place, word in enumerate(train) if word in marks)
    trained = parse_options(Train if train[start] == "train" else TrainArguments, "train", train[start + 1 :])
    assert trained.resume == "auto"
    named = options[-1].removesuffix(".json") if "--recipe" in options else "round2"
    expected = "runs/one two" if options is OPTIONS else f"runs/{named}"
    assert looked.run_dir == trained.run_dir == expected
    assert (looked.ds, looked.set, looked.data) == (trained.ds, trained.set, trained.data)


@pytest.mark.parametrize("script", ["train", "slurm.sbatch"])
def test_a_missing_profile_and_a_wish_for_help_are_answered_at_once(script):
    done = shell(f"launch/{script}", "--run", "runs/none")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: give --ds PROFILE")
    done = shell(f"launch/{script}", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--ds a100x8" in done.stdout and "#" not in done.stdout


@pytest.mark.parametrize("script", ["demo", "test"])
def test_help_installs_nothing(tmp_path, script):
    (tmp_path / "launch").mkdir()
    for name in (script, "setup.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch" / name)
    done = shell(f"launch/{script}", "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Sets everything up")
    assert "#" not in done.stdout and not (tmp_path / ".venv").exists()


def test_help_of_an_installed_demo_installs_nothing_either(tmp_path):
    """Whatever is pinned by now: the environment may be another checkout's too."""
    (tmp_path / "launch").mkdir()
    for name in ("demo", "setup.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch" / name)
    program = tmp_path / ".venv" / "bin" / "hebrew-asr"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "options of $*"\n')
    program.chmod(0o755)
    done = shell("launch/demo", "--help", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "options of demo --help\n", "")


def test_an_option_without_its_value_is_told():
    done = shell("launch/train", "--dry-run", "--ds")
    assert done.returncode == 2 and "error: --ds needs a value" in done.stderr


JUDGE = 'set -euo pipefail; source "$1"; read_options --run "$2"; run_to_its_end bash -c "$3" it "$2"'


def judged(run: Path, command: str) -> subprocess.CompletedProcess:
    return shell("-c", JUDGE, "it", str(ROOT / "launch/environment.sh"), str(run), command)


@pytest.mark.parametrize(
    ("command", "was_finished", "code"),
    [
        ('echo {} > "$1/summary.json"', False, 0),
        ('echo {} > "$1/summary.json"; exit 1', False, 0),  # as a launcher that was killed at the end
        ("exit 0", True, 0),  # there was nothing left to do
        ("exit 0", False, 1),  # as a launcher whose second half was killed
        ("exit 2", True, 2),  # an earlier run's mark says nothing of this one
        ("exit 75", False, 75),
        ("kill -KILL $$", False, 137),
    ],
)
def test_a_run_is_judged_by_its_own_mark(tmp_path, command, was_finished, code):
    if was_finished:
        (tmp_path / "summary.json").write_text("{}")
        os.utime(tmp_path / "summary.json", (1, 1))
    done = judged(tmp_path, command)
    assert done.returncode == code, done
    assert ("finished: " in done.stdout) == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_on_and_its_answer_waited_for(tmp_path, number):
    saves = 'cd "$1"; trap "sleep 1; touch saved; exit 75" TERM; touch ready; while :; do sleep 0.1; done'
    words = ["bash", "-c", JUDGE, "it", str(ROOT / "launch/environment.sh"), str(tmp_path), saves]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 75
    assert (tmp_path / "saved").exists()


def test_what_is_compiled_goes_with_the_run(tmp_path):
    """Kept when the run ends, however it does; taken where nothing is compiled yet; and never in the way of a run."""
    kept = tmp_path / "a b" / "compiled.tar"
    script = (
        'cd "$XDG_CACHE_HOME/hebrew_asr" && mkdir -p inductor/x && ls inductor/x && touch inductor/x/$NAME; exit 75'
    )

    def start(home: str, name: str) -> subprocess.CompletedProcess:
        environment = {"XDG_CACHE_HOME": str(tmp_path / home), "HEBREW_ASR_COMPILED": str(kept.parent), "NAME": name}
        environment |= {name: os.environ[name] for name in ("PATH", "HOME")}  # and no cache that a test's torch has
        (tmp_path / home / "hebrew_asr").mkdir(parents=True, exist_ok=True)
        words = ["bash", "-c", JUDGE, "it", str(ROOT / "launch/environment.sh"), str(tmp_path), script]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 75, done
        return done

    def held() -> set[str]:
        with tarfile.open(kept) as file:
            return {name for member in file.getmembers() if (name := Path(member.name).name) and member.isfile()}

    assert start("one", "first").stdout == "" and held() == {"first"}
    assert start("two", "second").stdout.splitlines() == [f"compiled before: taken from {kept}", "first"]
    assert held() == {"first", "second"}
    assert start("one", "third").stdout.splitlines() == ["first"] and held() == {"first", "third"}, "its own stays"
    kept.write_bytes(b"no archive")
    done = start("three", "fourth")
    assert "could not be unpacked; all is compiled anew" in done.stderr and held() == {"fourth"}
    assert not [*tmp_path.glob("*/hebrew_asr/inductor.*"), *kept.parent.glob("*.tar.*")]


def test_ctrl_c_reaches_the_run_each_time(tmp_path):
    """Of what bash starts in the background it reaches nobody, and the second time it means: leave without saving."""
    leaves = 'trap : TERM; trap "exit 130" INT; touch $1/ready; while :; do sleep 0.1; done'
    words = ["bash", "-c", JUDGE, "it", str(ROOT / "launch/environment.sh"), str(tmp_path), leaves]
    terminal = Terminal(words, environment=dict(os.environ), folder=ROOT)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    terminal.type(CTRL_C)
    try:
        assert terminal.process.wait(30) == 130
    finally:
        for process in processes_of(str(tmp_path)):
            process.kill()
    terminal.drain()
    assert "the last code was 130" in terminal.text


def test_a_signal_before_the_run_begins_ends_the_script(tmp_path):
    script = f"source launch/environment.sh; touch {tmp_path}/ready; sleep 1; touch {tmp_path}/began"
    process = subprocess.Popen(["bash", "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.terminate()
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 75 and "stopped before the run began" in told
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_shells_take_the_scripts(script):
    assert shell("-n", f"launch/{script}").returncode == 0
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-x", "-s", "bash", f"launch/{script}"], cwd=ROOT, capture_output=True)
        assert checked.returncode == 0, checked.stdout.decode()


def test_a_mac_is_told_why_not(tmp_path):
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    done = shell("-c", f'PATH="{tmp_path}:$PATH"; source launch/setup.sh; echo went on')
    assert done.returncode == 4 and "On macOS take a Linux container" in done.stderr and not done.stdout


def test_an_installation_shows_what_it_is_at(tmp_path):
    """On a terminal, from a stand-in for pip; what old versions of it say of newer ones is left out."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n[ \"$4\" != -qq ] || exit 0\necho Collecting torch==2.11.0\necho '  Downloading torch'\n"
        "echo '  Installing build dependencies: started'\n"
        "echo 'Installing collected packages: torch, rich, tyro'\necho DEPRECATION: much >&2\necho ERROR: disk >&2\n"
    )
    python.chmod(0o755)
    typed = ["script", "-qec", f"bash -c 'source \"{tmp_path}/launch/setup.sh\"'", "/dev/null"]
    shown = subprocess.run(typed, capture_output=True, text=True, check=True).stdout
    assert "Installing build dependencies: started" in shown
    assert "Collecting torch==2.11.0" in shown and "Installing 3 packages" in shown and "ERROR: disk" in shown
    assert "Downloading" not in shown and "DEPRECATION" not in shown
    assert (tmp_path / ".venv" / "installed").is_file()
    (tmp_path / ".venv" / "installed").unlink()
    python.write_text("#!/bin/sh\necho ERROR: disk >&2\nexit 3\n")
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "ERROR: disk" in done.stdout and not (tmp_path / ".venv" / "installed").exists()


def test_the_environment_can_be_overridden():
    show = 'source launch/environment.sh; echo "$PYTORCH_CUDA_ALLOC_CONF"'
    assert shell("-c", show).stdout == "expandable_segments:True\n"
    assert shell("-c", f"PYTORCH_CUDA_ALLOC_CONF=backend:native; {show}").stdout == "backend:native\n"


def test_the_skypilot_task_starts_what_there_is():
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text(encoding="utf-8"))
    load_profile(task["envs"]["PROFILE"])
    script = task["run"].replace("launch/train", "launch/train --dry-run")
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **task["envs"]}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "hebrew-asr train --resume auto --ds a100x8" in done.stdout


def test_the_container_holds_what_it_starts():
    lines = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    entry = next(json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT"))
    assert os.access(ROOT / entry[0], os.X_OK)
    assert any("launch/setup.sh" in line for line in lines), "the lock is installed in one way"
