"""``prepare`` on the workers of a Dask cluster, on two machines: what comes out is what one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.support import corpora
from tests.support.nodes import Node, NoNamespaces, two_nodes
from tests.support.tiny_task import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not find_spec("distributed"), reason="an extra: pip install 'hebrew-asr[cluster]'"),
]
PORT = 8786


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows that are dropped."""
    folder = tmp_path_factory.mktemp("corpus") / "v5"
    rows = [
        corpora.crowd_row(
            f"S{i % 9}/e{i % 30}/{i}",
            i,
            content=corpora.encode(corpora.voice(i, 2.0, 16_000), 16_000, "flac"),
            noisy=i % 17 == 0,
        )
        for i in range(160)
    ]
    corpora.write_crowd_shards(folder, rows, 2)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patience = 'corpus.preparation.cluster.PATIENCE_S = float(os.environ.get("PATIENCE_S", 60))'
    return corpora.small_prepare(tmp_path_factory.mktemp("script"), "sources.parquet.ROWS_PER_UNIT = 4", patience)


def line(script: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(script), "--source", str(corpus), "--out", str(out), "--store", "shards", *more]


@pytest.fixture(scope="module")
def alone(corpus: Path, script: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run(line(script, corpus, out, "--processes", "1"), check=True, capture_output=True, env=environment())
    return corpora.tree_of(out)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    try:
        with two_nodes() as both:
            yield both
    except NoNamespaces as error:
        pytest.skip(f"this machine lets us make no network namespaces: {error}")


@contextmanager
def cluster(nodes: tuple[Node, Node], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler and a worker on the first node, two workers on the second; the scheduler comes first."""
    first, second = nodes
    dask = [sys.executable, "-m", "dask"]
    scheduler = first.command([*dask, "scheduler", "--host", first.address, "--port", str(PORT), "--no-dashboard"])
    lines = [scheduler]
    for node in (first, second, second):
        worker = [*dask, "worker", f"tcp://{first.address}:{PORT}", "--host", node.address, "--nthreads", "1"]
        lines.append(node.command([*worker, "--no-dashboard", "--local-directory", str(folder)]))
    running = [
        subprocess.Popen(
            command,
            env=environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{number}.log").open("ab"),
        )
        for number, command in enumerate(lines)
    ]
    try:
        yield running
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def working(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process that a nanny has work done by."""
    return [
        child for child in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(child.cmdline())
    ]


def parts(out: Path) -> int:
    return sum(1 for _ in out.glob(".work/parts/*/*.jsonl"))


def wait_for(parts_done: int, out: Path, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while parts(out) < parts_done:
        assert running.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_workers_that_die_and_a_scheduler_that_restarts_leave_no_trace(nodes, corpus, script, alone, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    command = nodes[0].command(line(script, corpus, out, "--workers-on", f"tcp://{nodes[0].address}:{PORT}"))
    with cluster(nodes, tmp_path) as machines, log.open("wb") as told:
        running = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=told)
        for done, machine in ((3, 1), (10, 3)):
            wait_for(done, out, running, log)
            (worker, *_) = working(machines[machine])
            worker.kill()
        wait_for(16, out, running, log)
    assert running.poll() is None, log.read_text()
    before = parts(out)
    with cluster(nodes, tmp_path):
        assert running.wait(120) == 0, log.read_text()
    assert before < 40
    assert "was lost; what is not done begins anew" in log.read_text()
    assert corpora.tree_of(out) == alone


def test_a_cluster_that_cannot_be_used_is_named(nodes, corpus, script, tmp_path):
    """No address; nobody there; and a worker with threads."""
    first = nodes[0]
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://{first.address}:{PORT}"

    def tried(address: str, patience_s: int) -> subprocess.CompletedProcess[str]:
        command = first.command(line(script, corpus, tmp_path / "out", "--workers-on", address))
        variables = environment() | {"PATIENCE_S": str(patience_s)}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    done = tried("node1", 0)
    assert done.returncode == 2 and "no address of a scheduler, such as tcp://node1:8786" in done.stderr
    done = tried(address, 1)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert f"waiting for a scheduler with workers at {address}" in done.stderr
    assert f"no scheduler with workers at {address}: [Errno 111] Connection refused" in done.stderr
    lines = [
        [*dask, "scheduler", "--host", first.address, "--port", str(PORT), "--no-dashboard"],
        [*dask, "worker", address, "--host", first.address, "--nthreads", "2", "--no-dashboard", "--no-nanny"],
    ]
    running = [
        subprocess.Popen(first.command(one), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
        for one in lines
    ]
    try:
        done = tried(address, 60)
        assert done.returncode == 4 and "has 2 threads" in done.stderr and "--nthreads 1" in done.stderr
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
