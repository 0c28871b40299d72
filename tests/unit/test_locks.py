"""A folder's lock, between real processes: who is refused, who is named, and what a dead holder leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hebrew_asr.errors import UsageError
from hebrew_asr.locks import FolderLock

ROOT = Path(__file__).parents[2]
_HOLDER = """
import os, sys, time
from pathlib import Path
from hebrew_asr.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
assert lock.take()
if os.fork() == 0:  # as a loader process, which may outlive the one that holds the lock
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
if sys.stdin.readline():
    lock.will_be_free()
    print("leaves", flush=True)
time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path) -> FolderLock:
    return FolderLock(tmp_path / "run" / "lock")


@pytest.fixture
def holder(lock) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of rank meeting place 127.0.0.1:7."""
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", _HOLDER, str(lock.path)]
    with subprocess.Popen(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **job},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def test_another_process_is_refused_at_once_by_name(lock, holder):
    before = time.monotonic()
    with pytest.raises(UsageError) as refused:
        lock.refuse_if_held("run directory x", is_main=True)
    assert time.monotonic() - before < 5
    assert f"(pid {holder.pid} on {socket.gethostname()})" in str(refused.value)
    assert Path(sys.executable).name in str(refused.value)
    with pytest.raises(UsageError, match=f"pid {holder.pid} "):
        lock.take_or_refuse("run directory x")
    assert lock.path.read_text(), "the holder's file is as it was"


@pytest.mark.parametrize("is_main", [True, False])
def test_a_holder_that_was_asked_to_stop_is_waited_for(lock, holder, is_main, capfd):
    """As after Ctrl-C: DeepSpeed's launcher leaves at once, while the ranks it leaves behind save."""
    holder.stdin.write("leave\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "leaves\n"
    before = time.monotonic()
    threading.Timer(3.0, holder.kill).start()
    lock.refuse_if_held("run directory x", is_main=is_main)
    assert time.monotonic() - before > 2.9, "longer than others are given"
    told = f"run directory x: waiting for {Path(sys.executable)}"
    text = "".join(capfd.readouterr())
    assert ("which was asked to stop, to save its state" in text and told in text) == is_main, text
    lock.take_or_refuse("run directory x")


def test_a_stop_that_is_asked_for_while_the_lock_is_given_back_is_no_fault(lock):
    """The thread that hears the signal is another than the one that gives the lock back."""
    stop, faults = threading.Event(), list[Exception]()

    def hear() -> None:
        while not stop.is_set():
            try:
                lock.will_be_free()
            except Exception as error:
                faults.append(error)

    hears, pace = threading.Thread(target=hear), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    hears.start()
    for _ in range(500):
        assert lock.take()
        lock.release()
    stop.set()
    hears.join()
    sys.setswitchinterval(pace)
    assert not faults


@pytest.mark.parametrize("written", ["[1]", '{"leaves": true, "pid": 3}'])
def test_what_another_program_wrote_names_nobody(lock, holder, written):
    lock.path.write_text(written)
    with pytest.raises(UsageError, match=r"^run directory x is in use by another process; stop that first"):
        lock.refuse_if_held("run directory x", is_main=True)


def test_ranks_of_the_same_job_are_not_refused(lock, holder, monkeypatch):
    lock_of_rank_1 = FolderLock(lock.path)
    for port, is_refused in (("7", False), ("8", True)):
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        if is_refused:
            with pytest.raises(UsageError):
                lock_of_rank_1.refuse_if_held("run directory x", is_main=False)
        else:
            lock_of_rank_1.refuse_if_held("run directory x", is_main=False)


def test_what_a_killed_holder_wrote_is_not_taken_for_the_next_ones_signature(lock, holder, monkeypatch):
    """The first rank of a new job has the lock and has yet to sign, when another of its ranks looks."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "7")
    signature = lock.path.read_text()
    lock.path.write_text(signature.replace(":7", ":6"))
    signs = threading.Timer(0.5, lock.path.write_text, [signature])
    signs.start()
    FolderLock(lock.path).refuse_if_held("run directory x", is_main=False)
    signs.join()


def test_a_killed_holder_is_no_obstacle_though_its_child_lives_on(lock, holder):
    holder.kill()
    holder.wait()
    assert lock.path.exists(), "it could not clean up"
    lock.take_or_refuse("run directory x")
    lock.release()
    assert not any(lock.path.parent.iterdir())


def test_the_lock_of_another_in_the_place_of_a_folder_that_was_moved_stays(request, lock):
    assert lock.take()
    lock.path.parent.rename(lock.path.parent.with_name("moved"))
    other = request.getfixturevalue("holder")
    lock.release()
    assert (FolderLock(lock.path).holder() or {})["pid"] == other.pid


def test_a_folder_with_something_in_it_stays(lock):
    assert lock.take()
    (lock.path.parent / "kept").touch()
    lock.release()
    assert [path.name for path in lock.path.parent.iterdir()] == ["kept"]


def test_of_empty_folders_those_made_for_it_go_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "there/new/deep"):
        made = FolderLock(tmp_path / name / "lock")
        assert made.take() and made.path.exists()
        made.release()
        assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
