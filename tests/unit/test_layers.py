"""The folder tree means what it says: imports point downwards, two rooms are guarded, --help is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hebrew_asr"
LAYERS = [
    {"cores", "errors", "files", "launchers", "streams", "__init__"},
    {"fallbacks", "locks", "stopping", "values"},
    {"text", "recipe"},
    {"audio", "profiles"},
    {"data"},
    {"model"},
    {"engine"},
    {"training", "report"},
    {"launching"},
    {"commands"},
    {"train", "cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# The demo's base model is made of data's transcripts by model; training's command is a shorthand for train.py.
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = LEVEL[room_of(path)]
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "hebrew_asr" and len(parts) > 1 and room_of(path) != parts[1]:
            shortcut = path.name == "train.py" and parts[1] == "cli"  # same layer: the entry shares its error printing
            assert LEVEL[parts[1]] < own or shortcut, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_engine_imports_deepspeed_and_collectives(path):
    if room_of(path) == "engine":
        return
    guarded = {name for name in imports_of(path) if name.split(".")[0] == "deepspeed" or "torch.distributed" in name}
    assert not guarded, f"{path.name} imports {guarded}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_text_knows_no_torch_and_help_loads_none():
    for path in (PACKAGE / "text").glob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imports_of(path)}
    script = "import sys; from hebrew_asr.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
