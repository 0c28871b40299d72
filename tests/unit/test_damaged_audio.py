"""Whatever damage a file has, decoding it ends soon, in little memory, with its sound or an error that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import settings

from tests.support.fuzz import KINDS, SLOWEST_S

_THOROUGH = 60


def test_damaged_files_of_every_kind_are_heard_or_refused():
    thorough = settings.get_current_profile_name() == "thorough"
    per_kind = _THOROUGH if thorough else 3
    command = [sys.executable, "-m", "tests.support.fuzz", "1", str(per_kind)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30 + per_kind * 20, check=False
    )
    assert done.returncode == 0, f"died of {done.stderr.splitlines()[-12:]}"
    found = json.loads(done.stdout)
    assert sum(found["fates"].values()) == per_kind * len(KINDS)
    assert not found["long"]
    assert found["slowest"][0] < SLOWEST_S
