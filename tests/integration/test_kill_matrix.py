"""Stopped or killed at every kind of moment and resumed, again and again: the run ends like one never disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hebrew_asr.audio.source import Part
from hebrew_asr.corpus.preparation.shards import pack, packed_clips, shards_of
from hebrew_asr.data.manifest import index_manifest, open_manifest, read_manifest, write_manifest
from hebrew_asr.launching import processes
from hebrew_asr.launching.stopping import AGREE_S
from tests.support.long_run import LONG, SWITCH, ends_like, saved_step
from tests.support.tiny_task import (
    SPEC,
    events,
    events_so_far,
    free_port,
    last_step,
    make_task,
    train_arguments,
    wait_for,
    write_profile,
)
from tests.support.warm import WarmStart, has_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STOP_LIMIT_S = 30
KILLS, IN_A_WRITE, IN_THE_SWITCH = 10, 2, 5


def is_writing(run: Path) -> bool:
    """Whether a checkpoint is under way."""
    return any((run / "checkpoints").glob(".tmp-step-*"))


def is_switching(run: Path, output: Path) -> bool:
    """The switch is announced in this session's output, and the step after it has not been taken."""
    announced = output.is_file() and f"step {SWITCH}: Strategy A" in output.read_text()
    return announced and not is_proved(run)


def is_proved(run: Path) -> bool:
    return any(row["step"] == SWITCH for row in events_so_far(run, "phase"))


class Stopper:
    """Resumes the run, sends its ranks SIGTERM at some moment, and sees it leave."""

    def __init__(self, task: Path, run: Path, warm: WarmStart):
        self._run, self._warm = run, warm
        self._arguments = train_arguments(task, run, *LONG, resume="auto")
        self.output = run.parent / "output.log"
        self.pids: list[int] = []
        """Of the ranks of the latest start."""

    def __call__(self, port: int, moment: Callable[[], bool]) -> int:
        """The step that was saved; -1 if there was none."""
        self.output.unlink(missing_ok=True)
        self.pids = pids = self._warm.start(self._arguments, ranks=2, port=port, output=self.output)
        wait_for(moment, lambda: has_ended(pids) and self.output.read_text())
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        asked = time.monotonic()
        codes = [self._warm.wait(pid) for pid in pids]
        return self._check(codes, time.monotonic() - asked)

    def _check(self, codes: list[int], waited_s: float) -> int:
        output = self.output.read_text()
        assert set(codes) == {75}, output
        assert "Traceback" not in output
        slowest_s = max((row["step_s"] for row in events(self._run, "train")), default=0.0)
        assert waited_s < STOP_LIMIT_S + slowest_s
        step = saved_step(self._run)
        said = "nothing to save" if step < 0 else f"stopped after step {step}, state saved"
        assert said in output and "error:" not in output
        assert step > 0 or "then saving" not in output
        assert not is_writing(self._run)
        return step


class StalledLoaders:
    """A file system that hangs, as a rank sees it: from one step of this session on, its loaders bring nothing more."""

    def __init__(self, run: Path, stop: Stopper):
        self._run, self._stop, self._first = run, stop, last_step(run) + 1
        self.loaders: list[psutil.Process] = []
        self._seen, self._seen_s = -1, 0.0

    def is_waited_for(self) -> bool:
        """Whether no step has come for a while since the loaders were stopped."""
        step = last_step(self._run)
        if not self.loaders and step >= self._first:
            self.loaders = [process for pid in self._stop.pids for process in psutil.Process(pid).children()]
            for process in self.loaders:
                process.suspend()
        if not self.loaders or step != self._seen:
            self._seen, self._seen_s = step, time.monotonic()
        return time.monotonic() - self._seen_s > 2


def test_sigterm_at_every_kind_of_moment(long_task, long_run, warm, tmp_path):
    """One run, stopped in an evaluation, in training, in a checkpoint write, in the switch and in a wait for data."""
    run = tmp_path / "run"
    stop = Stopper(long_task, run, warm)
    assert stop(free_port(), (run / "metrics.jsonl").is_file) == -1
    assert not events(run, "eval"), "the evaluation had not ended"
    assert 3 <= stop(free_port(), lambda: last_step(run) >= 3) < SWITCH
    before = saved_step(run)
    assert stop(free_port(), lambda: is_writing(run) and last_step(run) > before) < SWITCH
    assert stop(free_port(), lambda: is_switching(run, stop.output)) == SWITCH + 1
    assert is_proved(run), "the switch, and one step, were finished first"
    stalled = StalledLoaders(run, stop)
    assert SWITCH + 1 < stop(free_port(), stalled.is_waited_for) < last_step(long_run)
    _, left = psutil.wait_procs(stalled.loaders, timeout=10)
    assert len(stalled.loaders) == 2 and all(processes.has_ended(process) for process in left)
    codes = warm.run(
        train_arguments(long_task, run, *LONG, resume="auto"), ranks=2, port=free_port(), output=tmp_path / "last.log"
    )
    assert codes == [0, 0], (tmp_path / "last.log").read_text()
    ends_like(run, long_run)


@pytest.mark.parametrize("is_rehearsed", [True, False])
def test_sigterm_while_the_step_is_compiled(warm, tmp_path, is_rehearsed):
    """Minutes may pass before that step could be saved, and nothing is lost without it: the rank leaves within seconds.

    If the step ends in these seconds, as it may on a quick machine, it is saved like any other.

    Attention over packed clips has no graph on a CPU, so the rank here uses another form of it, and traces forward
    without making C++ of it, which takes minutes.
    """
    begins = "rehearsing phase B" if is_rehearsed else "step 0: Strategy B"
    rehearse = f"rehearse={str(is_rehearsed).lower()}"
    task = make_task(tmp_path / "task", spec=replace(SPEC, encoder_layers=1, num_hidden_layers=1))
    run, output = tmp_path / "run", tmp_path / "log"
    hardware = {"accelerator": "cpu", "num_ranks": 1, "compile": True}
    profile = write_profile(tmp_path / "compiled.json", _hardware=hardware)
    changes = ('unfrozen_layers={"llm_top": 1, "audio_top": 1}', "max_steps=3", "evaluation.at_start=false", rehearse)
    arguments = train_arguments(task, run, *changes, ds=profile, resume="auto")
    expected = train_arguments(task, tmp_path / "whole", *changes, ds=profile)
    assert warm.run(expected, ranks=1, port=free_port(), output=tmp_path / "whole.log", compiled=True) == [0]
    (pid,) = warm.start(arguments, ranks=1, port=free_port(), output=output, compiled=True)
    wait_for(lambda: output.is_file() and begins in output.read_text(), lambda: has_ended([pid]))
    time.sleep(0.5)
    assert not events(run, "train"), "the first step is still being compiled"
    os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    assert warm.wait(pid) == 75, output.read_text()
    assert time.monotonic() - asked < AGREE_S + 3
    saved = saved_step(run)
    assert len(events(run, "train")) == max(saved, 0) and saved in (-1, 1)
    assert ("nothing to save" if saved < 0 else "stopped after step 1, state saved") in output.read_text()
    assert warm.run(arguments, ranks=1, port=free_port(), output=output, compiled=True) == [0], output.read_text()
    assert [row["step"] for row in events(run, "train")] == [1, 2, 3]
    assert "could not be compiled" not in output.read_text()
    told = (tmp_path / "whole.log").read_text()
    assert ("the phase's first step compiles" in told) != is_rehearsed, "it is said only where it does"
    ends_like(run, tmp_path / "whole")


def test_sigkill_at_ten_moments(long_task, long_run, warm, tmp_path):
    """One run, killed without warning: twice at moments that were watched for, else after a random delay.

    It reads its clips from shards, and the run that was never disturbed reads them from files.
    """
    run, draw = tmp_path / "run", random.Random(0)
    shards = in_shards(long_task / "data", tmp_path / "shards")
    arguments = train_arguments(long_task, run, *LONG, f"data.folder={shards}", resume="auto")
    for number in range(KILLS):
        output = tmp_path / f"{number}.log"
        before_ns = started_ns(run)
        pids = warm.start(arguments, ranks=2, port=free_port(), output=output)
        moments = {IN_A_WRITE: lambda: is_writing(run), IN_THE_SWITCH: lambda: is_switching(run, output)}  # noqa: B023
        has_begun = lambda: started_ns(run) != before_ns  # noqa: B023, E731
        wait_for(moments.get(number, has_begun), lambda: has_ended(pids) and output.read_text())  # noqa: B023
        if number not in moments:
            # At random, but neither past the switch before its turn nor past the end, however fast the machine is.
            latest = 2 * number + 2 if number < IN_THE_SWITCH else SWITCH + 3 * (number - IN_THE_SWITCH) + 1
            deadline = time.monotonic() + draw.uniform(0.0, 1.0 if number < IN_THE_SWITCH else 2.0)
            while time.monotonic() < deadline and last_step(run) < latest:
                time.sleep(0.004)
        assert not has_ended(pids), f"kill {number} came after the end"
        for pid in pids if number % 4 else [draw.choice(pids)]:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        codes = [warm.wait(pid) for pid in pids]
        assert all(codes) and (warm.is_launched or -signal.SIGKILL in codes)
        assert time.monotonic() - killed < 20, "a rank outlived the other"
        saved = saved_step(run)
        if number == IN_A_WRITE:
            assert is_writing(run), "a half-written checkpoint lies there"
        if number == IN_THE_SWITCH:
            # The last checkpoint of the first phase is written in the background: it may not have been sealed yet.
            assert not is_proved(run) and saved in (SWITCH - 2, SWITCH)
    output = tmp_path / "last.log"
    codes = warm.run(arguments, ranks=2, port=free_port(), output=output)
    assert codes == [0, 0], output.read_text()
    ends_like(run, long_run)


def in_shards(data: Path, folder: Path) -> Path:
    """Write a set with its clips in shards, and with Arrow files; returns ``folder``."""
    for side in ("train", "eval"):
        clips = read_manifest(data / f"{side}.jsonl")
        sounds = [Part(clip.audio, 0, Path(clip.audio).stat().st_size) for clip in clips]
        (shard,) = shards_of(folder, side, clips, sounds)
        write_manifest(folder / f"{side}.jsonl", packed_clips(shard, pack(shard), folder))
        index_manifest(folder / f"{side}.jsonl")
        assert all(clip.size_bytes for clip in open_manifest(folder / f"{side}.jsonl"))
    return folder


def started_ns(run: Path) -> int:
    """Changes when a session begins."""
    return (run / "run.json").stat().st_mtime_ns if (run / "run.json").is_file() else 0
