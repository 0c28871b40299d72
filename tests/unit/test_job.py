"""What ranks tell ``hebrew-asr train`` arrives, whatever becomes of the temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hebrew_asr.launching.job import Job, Told
from hebrew_asr.launching.processes import JOB_VARIABLE
from tests.support.disks import fill, small_disk
from tests.support.tiny_task import ROOT

RANK = "from hebrew_asr.launching.job import Job; job = Job.of_this_rank(); job.join(); input(); job.report(75)"


def rank(number: int, folder: Path) -> subprocess.Popen:
    """One that joins, and leaves with 75 once it is told to."""
    variables = {**os.environ, "RANK": str(number), JOB_VARIABLE: f"{os.getpid()}:{folder}", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", RANK], env=variables, stdin=subprocess.PIPE, text=True)


@pytest.mark.parametrize("accident", [lambda _: None, fill, shutil.rmtree])
def test_codes_arrive_on_a_full_disk_and_from_a_folder_that_is_gone(tmp_path, accident):
    with small_disk(tmp_path / ("long" * 30), "64k") as disk:
        folder = disk / "job"
        folder.mkdir()
        told = Told(folder)
        if accident is fill:
            fill(disk)
        ranks = [rank(number, folder) for number in range(2)]
        while len(told.pids()) < 2:
            assert not any(one.poll() for one in ranks)
        assert told.pids() == {number: one.pid for number, one in enumerate(ranks)} and not told.codes()
        if accident is shutil.rmtree:
            shutil.rmtree(folder)
        for one in ranks:
            one.communicate("\n")
        assert told.codes() == {0: 75, 1: 75} and len(told.pids()) == 2


def test_a_rank_goes_on_where_nobody_listens(tmp_path):
    for folder in (None, tmp_path, tmp_path / "gone"):
        job = Job(folder)
        job.join()
        job.report(0)
