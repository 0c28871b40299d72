"""The real wandb beside a run: no server, one that never answers, one that fails, a service that hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hebrew_asr.commands.ours import files_below, is_of_demo
from hebrew_asr.config.recipe import load_recipe
from tests.support.tiny_task import ROOT, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SINK = """
import json, os, signal, sys, time
from pathlib import Path
import psutil
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.report import sinks
from hebrew_asr.report.records import FaultRecord

folder, hang = Path(sys.argv[1]), sys.argv[2]
sinks._LOG_S = sinks._FINISH_S = 6.0 if hang else 60.0
times = [time.monotonic()]
sink = sinks.WandbSink(load_recipe("demo"), folder, {"data": 1}, None)
times.append(time.monotonic())
if sink.run_id:
    (folder.parent / "config.json").write_text(json.dumps(dict(sink._run.config)))
if hang:
    for child in psutil.Process().children():
        child.send_signal(signal.SIGSTOP)
for step in range(5000 if hang == "log" else 3):
    sink.write(FaultRecord(step=step, kind="fallback", reason="x" * 10_000))
times.append(time.monotonic())
sink.close()
times.append(time.monotonic())
print(json.dumps([after - before for before, after in zip(times, times[1:])]), flush=True)
"""


@contextmanager
def silent_server() -> Iterator[int]:
    """Accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        held = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


class _Fails(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def failing_server() -> Iterator[int]:
    """Answers 500 to everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Fails) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def start(folder: Path, hang: str = "", **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        [sys.executable, "-c", SINK, str(folder), hang],
        env={**inherited, "PYTHONPATH": str(ROOT), "HOME": str(folder.parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def test_no_outage_holds_a_run_and_none_loses_what_it_logged(tmp_path):
    key = "0123456789abcdef" * 2 + "01234567"
    with ExitStack() as stack:
        ports = {
            "refused": free_port(),
            "silent": stack.enter_context(silent_server()),
            "failing": stack.enter_context(failing_server()),
        }
        jobs = {
            name: start(tmp_path / name / "run", WANDB_API_KEY=key, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
            for name, port in ports.items()
        }
        jobs["no login"] = start(tmp_path / "no login" / "run")
        jobs["misspelled"] = start(tmp_path / "misspelled" / "run", WANDB_MODE="ofline")
        told = {name: job.communicate(timeout=240) for name, job in jobs.items()}
    for name, (out, err) in told.items():
        started_s, logged_s, finished_s = json.loads(out)
        assert started_s < 90 and logged_s < 20 and finished_s < 60, (name, out)
        assert jobs[name].returncode == 0 and key not in out + err
        (kept,) = (tmp_path / name / "run" / "wandb").glob("offline-run-*/run-*.wandb")
        assert kept.stat().st_size > 30_000, "three records of 10,000 letters"
        assert [file for file in files_below(tmp_path / name / "run") if not is_of_demo(file)] == []
        assert err.count("warning:") == (name != "no login"), err
        assert name != "misspelled" or "(WANDB_MODE is ofline (did you mean offline?))" in err
        config = json.loads((tmp_path / name / "config.json").read_text())
        learned = {key: value for key, value in load_recipe("demo").to_dict()["data"].items() if value != {}}
        assert config["run"] == {"data": 1} and config["data"] == learned, "all but what is empty, which W&B leaves out"
        assert name == "no login" or f"to send it later: wandb sync {kept.parent}" in err


@pytest.mark.parametrize("hang", ["log", "finish"])
def test_a_service_that_hangs_is_left_alone(hang, tmp_path):
    job = start(tmp_path / "run", hang, WANDB_MODE="offline")
    out, err = job.communicate(timeout=150)
    _, logged_s, finished_s = json.loads(out)
    assert logged_s < 30 and finished_s < 30 and job.returncode == 0
    assert "no answer in 6 s" in err and err.count("warning: wandb failed") == 1 and "Traceback" not in err


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt()", "OSError('no')", "GeneratorExit()"])
def test_nothing_that_wandb_raises_ends_training(raised, tmp_path):
    """The real one calls sys.exit in places; here it does so everywhere."""
    body = f"def __getattr__(name):\n    def fail(*_, **__):\n        raise {raised}\n    return fail\n"
    (tmp_path / "wandb.py").write_text(body)
    job = start(tmp_path / "run", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0 and len(json.loads(out)) == 3
    assert err.count("warning: wandb failed") == 1 and "Traceback" not in err
