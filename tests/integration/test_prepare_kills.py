"""Killed anywhere and run again, ``prepare`` continues, and nobody can tell from the result."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hebrew_asr.corpus import prepare as module
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.corpus.prepare import is_prepared, prepare
from tests.support import corpora
from tests.support.terminal import CTRL_C, Terminal
from tests.support.tiny_task import ROOT

pytestmark = pytest.mark.integration
KILLS = 6
"""Each kind of them twice."""
NUM_PARTS = 30
"""Of the corpus: three shards of 80 rows in units of 8."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows that are dropped, duplicated and re-issued."""
    folder = tmp_path_factory.mktemp("kills") / "v5"
    contents = [corpora.speech(seed, 2.0) for seed in range(12)]  # encoding mp3 is the slow part: reuse
    rows = []
    for i in range(240):
        audio = contents[i // 20] if i % 20 == 0 else corpora.encode(corpora.voice(i, 2.0, 16_000), 16_000, "flac")
        first = i % 234  # the last six are issued for the second time
        rows.append(corpora.crowd_row(f"S{first % 9}/e{first % 30}/{first}", i, content=audio, noisy=i % 17 == 0))
    corpora.write_crowd_shards(folder, rows, 3)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.small_prepare(tmp_path_factory.mktemp("script"), "sources.parquet.ROWS_PER_UNIT = 8")


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, script: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result to be met again."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(script, corpus, out).wait(120) == 0
    return corpora.tree_of(out)


def run(script: Path, corpus: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(script), "--source", str(corpus), "--out", str(out), "--processes", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(("wait_s", "times"), [(0.0, 1), (0.1, 1), (0.1, 10), (0.5, 10)])
def test_ctrl_c_while_workers_start_is_one_line(corpus, script, uninterrupted, tmp_path, wait_s, times):
    """The terminal sends it to all of them, and they are importing; and again and again, while the keys are held."""
    line = [sys.executable, str(script), "--source", str(corpus), "--out", str(tmp_path / "out"), "--processes", "2"]
    terminal = Terminal(line, environment={**os.environ, "PYTHONPATH": str(ROOT)}, folder=tmp_path)
    while not any(
        "spawn_main" in " ".join(process.info["cmdline"] or ()) for process in begun_by(terminal.process.pid)
    ):
        time.sleep(0.01)
    time.sleep(wait_s)
    for _ in range(times):
        terminal.type(CTRL_C)
        time.sleep(0.03)
    assert terminal.process.wait(60) == 130
    terminal.drain()
    assert terminal.text.count("interrupted") == 1 and "Traceback" not in terminal.text
    assert run(script, corpus, tmp_path / "out").wait(60) == 0
    assert_same(corpora.tree_of(tmp_path / "out"), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_or_a_terminal_that_is_closed_ends_it_as_ctrl_c_does(
    corpus, script, uninterrupted, tmp_path, number
):
    """Both reach the workers too. The cursor, which the bar hides, is back; and nothing but finished parts stays."""
    out = tmp_path / "out"
    line = [sys.executable, str(script), "--source", str(corpus), "--out", str(out), "--processes", "2"]
    terminal = Terminal(line, environment={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}, folder=tmp_path)
    while "\x1b[?25l" not in terminal.text or num_parts(out) < 2:
        time.sleep(0.01)
    workers = begun_by(terminal.process.pid)
    os.killpg(terminal.process.pid, number)
    assert terminal.process.wait(60) == 128 + number
    terminal.drain()
    assert terminal.text.count(f"ended by {number.name}") == 1 and "Traceback" not in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")
    psutil.wait_procs(workers, timeout=10)
    assert len(workers) > 1 and not any(worker.is_running() for worker in workers)
    assert run(script, corpus, out).wait(60) == 0
    assert_same(corpora.tree_of(out), uninterrupted)


def test_a_reader_that_leaves_is_no_fault_of_the_folder(corpus, script, tmp_path):
    typed = f"{sys.executable} {script} --source {corpus} --out {tmp_path / 'out'}"
    line = ["bash", "-c", f"{typed} 2>&1 | true; exit ${{PIPESTATUS[0]}}"]
    assert subprocess.run(line, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 141


def begun_by(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline", "ppid"]) if process.info["ppid"] == pid]


def test_kills_at_random_moments(corpus, script, uninterrupted, tmp_path):
    kills, finished, resumed, draw = 0, 0, 0, random.Random(0)
    while kills < KILLS:
        out = tmp_path / f"out{finished}"
        while not is_prepared(out):
            parts_before = num_parts(out)
            process = run(script, corpus, out)
            moment = draw.randint(parts_before, NUM_PARTS + 4)  # beyond the last part: let it finish
            while process.poll() is None and num_parts(out) < moment:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.1))
            if process.poll() is None:
                kill_one_or_all(process, kills)
                kills += 1
                resumed += parts_before > 0
            else:
                assert process.returncode == 0, (process.stderr or io.BytesIO()).read().decode()
        finished += 1
        assert_same(corpora.tree_of(out), uninterrupted)
    assert resumed, "no run had anything to continue"


def num_parts(out: Path) -> int:
    walked = os.walk(out / ".work" / "parts")  # bears folders that vanish meanwhile
    return sum(name.endswith(".jsonl") for _, _, names in walked for name in names)


def kill_one_or_all(process: subprocess.Popen[bytes], turn: int) -> None:
    """By turns the whole session, the parent alone (its workers must follow), or one worker (the parent must stop)."""
    children = children_of(process.pid)
    if turn % 3 == 0:
        os.killpg(process.pid, signal.SIGKILL)
    elif turn % 3 == 1 or not children:
        process.kill()
    else:
        os.kill(children[-1], signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 20
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_same(got: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(got) == sorted(expected)
    assert [name for name in got if got[name] != expected[name]] == []


def test_death_at_every_step_of_the_assembly(corpus, uninterrupted, tmp_path, monkeypatch):
    converted, out = tmp_path / "converted", tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:  # leave the folder where all units are done, and nothing else is
        patch.setattr(module, "write_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(PrepareOptions(source=(str(corpus),), out=converted, processes=2))
    options = PrepareOptions(source=(str(corpus),), out=out, processes=2)
    # The files of a process that dies stay, synced or not; where other tests write, each call takes seconds.
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(Workers, "submit", None)  # all units are done: none is needed, to foretell the disk either
    for step in range(1000):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(converted, out)
        survived = not dies_at(step, options)
        prepare(options)
        assert_same(corpora.tree_of(out), uninterrupted)
        if survived:
            break
    assert step >= 10, "there are at least ten files to write, to delete and to move"


def dies_at(step: int, options: PrepareOptions) -> bool:
    """Prepare in a child that SIGKILLs itself instead of making the change number ``step`` to the file system."""
    child = os.fork()
    if child == 0:
        left = step

        def fatal(change: Callable[..., Any]) -> Callable[..., Any]:
            def maybe(*args: Any, **keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **keywords)

            return maybe

        for name in ("replace", "unlink", "rmdir"):
            setattr(Path, name, fatal(getattr(Path, name)))
        shutil.rmtree = fatal(shutil.rmtree)  # type: ignore[assignment]
        os.sync = fatal(os.sync)
        prepare(options)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_then_space(script, small_disk, tmp_path):
    # The first rows are what the need is predicted from: short ones, so that the run starts.
    rows = [corpora.crowd_row(f"a/{i}/{i}", i, duration_s=0.7, text="שלום לך") for i in range(24)]
    long = [corpora.encode(corpora.voice(i, 6.0, 16_000), 16_000, "wav") for i in range(48)]
    rows += [corpora.crowd_row(f"b/{i}/{i}", i, content=content, duration_s=6.0) for i, content in enumerate(long)]
    corpus = tmp_path / "v5"
    corpora.write_shard(corpus, rows, corpora.CROWD_TRANSCRIBE, group=4)
    command = [sys.executable, str(script), "--source", str(corpus), "--processes", "2", "--out"]
    full = subprocess.run([*command, str(small_disk / "out")], capture_output=True, text=True, timeout=120)
    assert full.returncode == 4
    assert "the disk is full" in full.stderr and "run the same command again" in full.stderr
    assert "Traceback" not in full.stderr
    assert not is_prepared(small_disk / "out")
    assert num_parts(small_disk / "out") > 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    subprocess.run([*command, str(small_disk / "out")], check=True, capture_output=True, timeout=120)
    subprocess.run([*command, str(tmp_path / "out")], check=True, capture_output=True, timeout=120)
    assert_same(corpora.tree_of(small_disk / "out"), corpora.tree_of(tmp_path / "out"))


def test_a_power_cut_that_lost_audio_is_repaired(corpus, script, uninterrupted, tmp_path):
    process = run(script, corpus, tmp_path / "out")
    while not num_parts(tmp_path / "out"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    part = next((tmp_path / "out").glob(".work/parts/**/*.jsonl"))
    kept = [row for row in map(json.loads, part.read_text().splitlines()) if row["fate"] == "kept"]
    (tmp_path / "out" / kept[0]["audio"]).write_bytes(b"")  # its data never reached the disk
    (tmp_path / "out" / kept[-1]["audio"]).unlink(missing_ok=True)
    assert run(script, corpus, tmp_path / "out").wait(120) == 0
    assert_same(corpora.tree_of(tmp_path / "out"), uninterrupted)
