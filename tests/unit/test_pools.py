"""Worker processes end with the process that started them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hebrew_asr import pools
from hebrew_asr.cli import main
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.pools import Pool
from hebrew_asr.text.prompt import build_target
from tests.support import corpora

ROOT = Path(__file__).parents[2]


def test_workers_end_with_a_parent_that_is_killed():
    """At work and idle, though the parent could tell them nothing."""
    program = """
import os, time
from hebrew_asr.pools import Pool

pool = Pool(2)
busy = pool.submit(time.sleep, 600)
pool.submit(os.getpid).result()
print("started", flush=True)
busy.result()
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "started\n"
        started = psutil.Process(parent.pid).children()
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    for process in left:
        process.kill()
    assert len(started) >= 2 and not left


def test_ctrl_c_again_gives_up_what_workers_are_at(tmp_path):
    """Else one would write into a folder that its parent has left, or its parent wait for it for ever."""
    program = f"""
import os, time
from hebrew_asr.pools import Pool

pool = Pool(2)
busy = pool.submit(os.system, "sleep 5; touch '{tmp_path}/late'")
pool.submit(os.getpid).result()
print("started", flush=True)
try:
    busy.result()
finally:
    print("ending", flush=True)
    pool.shutdown()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        for said in ("started\n", "ending\n"):
            assert parent.stdout.readline() == said
            workers = [child for child in psutil.Process(parent.pid).children() if "spawn_main" in str(child.cmdline())]
            time.sleep(0.2)
            parent.send_signal(signal.SIGINT)
        assert parent.wait(4) == -signal.SIGINT
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=0)[1]


def test_a_broken_pool_ends_though_its_own_thread_closes_the_same_pipe(monkeypatch):
    """Before Python 3.11.5 both close it: the second one is told of a descriptor that is gone."""

    def is_gone() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    pool = Pool(1)
    with pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result()
    monkeypatch.setattr(pools, "sys", SimpleNamespace(version_info=(3, 11, 2)))
    vars(pool)["_call_queue"] = SimpleNamespace(_reader=SimpleNamespace(close=is_gone))
    pool.shutdown()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_worker_that_is_killed_in_the_shutdown_holds_up_nobody(killed):
    """One of both has the lock that the other waits for."""
    pool = Pool(2)
    for busy in [pool.submit(time.sleep, 0.5) for _ in range(2)]:
        busy.result()
    pids = [*vars(pool)["_processes"]]
    time.sleep(0.2)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    ending = threading.Thread(target=pool.shutdown, daemon=True)
    ending.start()
    time.sleep(0.5)  # they are told to leave, and hear nothing
    os.kill(pids[killed], signal.SIGKILL)
    os.kill(pids[1 - killed], signal.SIGCONT)
    ending.join(10)
    hangs = ending.is_alive()
    for child in psutil.Process().children():
        if child.pid in pids:
            child.kill()
    assert not hangs


def test_a_worker_that_is_killed_ends_the_audit_as_a_fault_of_the_machine(tmp_path, capfd):
    """Not as one of the set, which code 1 would say."""
    sound = tmp_path / "a.flac"
    sound.write_bytes(corpora.encode(corpora.voice(0, 2.0, 16_000), 16_000, "flac"))
    clips = (Clip(str(sound), build_target(corpora.sentence(i)), f"set/{i}", 2.0, f"g{i}") for i in range(500))
    write_manifest(tmp_path / "train.jsonl", clips)
    killer = threading.Thread(target=kill_the_first_worker)
    killer.start()
    assert main(["audit", str(tmp_path), "--processes", "1"]) == 4
    killer.join()
    told = capfd.readouterr().err
    assert "a worker process was killed" in told and "Traceback" not in told


def kill_the_first_worker() -> None:
    while True:
        for process in psutil.Process().children():
            if any("spawn_main" in word for word in process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return
        time.sleep(0.01)
