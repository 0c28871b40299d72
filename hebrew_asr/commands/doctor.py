"""``hebrew-asr doctor``: whether this machine can do a run, before it is started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hebrew_asr.training.arguments import DataArguments


@dataclass
class Command(DataArguments):
    """Look at GPUs, disk, memory, cores, compilers, hub and logins, and say what is wrong and how to mend it.

    Leaves with exit code 0, or 4 if a check failed; a warning does not stop a run. Names the profile for these GPUs.

    $ hebrew-asr doctor
    $ hebrew-asr doctor --ds a100x8 --data mine
    (whether that run can be done here)
    """

    ds: str | None = None  # type: ignore[assignment]
    """Profile to check for; the one that suits these GPUs unless given."""
    run_dir: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Run directory; runs/<recipe name> unless given."""
    json: bool = False
    """Print JSON instead of lines."""

    def run(self) -> int:
        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.errors import EnvironmentProblem
        from hebrew_asr.planning.doctor import examine

        self.refuse_no_set()
        recipe = self.load_recipe()
        profile = None if self.ds is None else load_profile(self.ds)
        found, best = examine(recipe, profile, Path(self.run_dir or f"runs/{recipe.name}"))
        failed = [finding.name for finding in found if finding.state == "fail"]
        if self.json:
            report = {"ok": not failed, "profile": best, "checks": [asdict(finding) for finding in found]}
            print(json.dumps(report, ensure_ascii=False, indent=2))
            return EnvironmentProblem.exit_code if failed else 0
        for finding in found:
            fix = f"\n      -> {finding.fix}" if finding.fix else ""
            print(f"{finding.state:<4}  {finding.name}: {finding.says}{fix}")
        none = f"no profile for GPUs fits here{'; --ds cpu is for the demo' if self.ds is None else ''}"
        print(f"profile for these GPUs: --ds {best}" if best else none)
        if failed:
            print(f"failed: {', '.join(failed)}")
        return EnvironmentProblem.exit_code if failed else 0
