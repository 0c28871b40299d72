"""Metrics and samples on real disks that are full, read-only or torn: nothing is lost, doubled or half a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.report.outputs import MetricsFile, PatientFiles
from hebrew_asr.report.records import FaultRecord, MachineRecord, as_row
from hebrew_asr.report.sinks import as_curves
from tests.support.disks import fill, remount, small_disk


def record(step: int) -> FaultRecord:
    return FaultRecord(step=step, kind="fallback", reason="שלום " * 40)


def steps(path: Path) -> list[int]:
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"", "a torn line at the end"
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_records_wait_for_a_full_disk_in_order(disk, capsys):
    path = disk / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write(record(1))
    ballast = fill(disk)
    for step in range(2, 40):
        metrics.write(record(step))
        assert steps(path) == list(range(1, 1 + len(steps(path)))), "whole lines only, while it is full too"
    assert len(steps(path)) < 39
    told = capsys.readouterr().err
    assert told.count("warning:") == 1 and "No space left" in told and str(path) in told
    ballast.unlink()
    metrics.write(record(40))
    assert steps(path) == list(range(1, 41))
    assert "written again" in capsys.readouterr().out
    metrics.close()


def test_a_disk_that_stays_full_is_told_at_the_end(disk, capsys):
    metrics = MetricsFile(disk / "metrics.jsonl")
    fill(disk)
    for step in range(1, 30):
        metrics.write(record(step))
    metrics.close()
    lacking = 29 - len(steps(disk / "metrics.jsonl"))
    assert lacking and f"lacks the last {lacking} records" in capsys.readouterr().err


def test_a_resume_cuts_what_is_made_again_even_on_a_full_disk(disk):
    path = disk / "metrics.jsonl"
    whole = b"".join(json.dumps(as_row(record(step)), ensure_ascii=False).encode() + b"\n" for step in range(1, 9))
    path.write_bytes(whole[:-99])  # within a letter of two bytes, or not: one of the two is
    ballast = fill(disk)
    MetricsFile(path, 6).close()
    assert steps(path) == list(range(1, 7))
    ballast.unlink()
    path.write_bytes(whole[:-100])
    MetricsFile(path, 7).close()
    assert steps(path) == list(range(1, 8))


def test_a_run_directory_that_is_removed_ends_the_run(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    metrics = MetricsFile(path)
    metrics.write(record(1))
    shutil.rmtree(path.parent)
    with pytest.raises(EnvironmentProblem, match=r"run/metrics\.jsonl was removed while it was written"):
        metrics.write(record(1))
    metrics.close()
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"{torn\n", b"\xff\xfe\n", b"\n", b"[]\n", b'"\xd7"\n'])
def test_a_damaged_line_in_the_middle_is_cut_and_the_others_stay(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(as_row(record(step))).encode() + b"\n" for step in (1, 2)]
    path.write_bytes(lines[0] + damage + lines[1].rstrip())
    metrics = MetricsFile(path, 2)
    metrics.write(record(3))
    metrics.close()
    assert steps(path) == [1, 2, 3]


def test_files_wait_for_a_read_only_disk(disk, capsys):
    files = PatientFiles(disk)
    files.write("samples/a.jsonl", "before\n")
    remount(disk, "ro")
    files.write("samples/a.jsonl", "after\n")
    files.write("samples/b.jsonl", "b\n")
    assert (disk / "samples" / "a.jsonl").read_text() == "before\n"
    assert capsys.readouterr().err.count("warning:") == 1
    remount(disk, "rw")
    files.close()
    assert {path.name: path.read_text() for path in (disk / "samples").iterdir()} == {
        "a.jsonl": "after\n",
        "b.jsonl": "b\n",
    }


def test_wandb_draws_a_curve_for_each_rank():
    record = MachineRecord(step=50, phase="B", memory_gib=[12.5, 13.0], power_w=[600.0, 610.5])
    curves = {"memory_gib/rank0": 12.5, "memory_gib/rank1": 13.0, "power_w/rank0": 600.0, "power_w/rank1": 610.5}
    assert as_curves(as_row(record)) == {"event": "machine", "step": 50, "phase": "B", **curves}
    fault = as_row(FaultRecord(step=1, kind="unreadable", clips=["a"], ranks=[1]))
    assert as_curves(fault)["clips"] == ["a"] and as_curves(fault)["ranks"] == [1], "no curves, and left out of them"
