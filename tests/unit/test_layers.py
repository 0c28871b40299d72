"""The folder tree means what it says: imports point downwards, some rooms are guarded, files stay readable."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hebrew_asr"
FLOORS = [
    {"cores", "errors"},
    {"files", "languages", "logs", "pools", "streams", "units", "__init__"},
    {"text", "config", "pages", "audio", "launching", "fallbacks", "locks", "remote"},
    {"data", "sources"},
    {"model", "corpus", "report"},
    {"passes"},
    {"flat", "inference", "audit"},
    {"engine"},
    {"watching", "checkpoints", "evaluation"},
    {"training"},
    {"planning", "demo", "serving"},
    {"speed"},
    {"commands", "cli", "train"},
    {"__main__"},
]
"""A room imports only rooms of lower floors."""
FRONT_DOOR = {("__init__", "inference")}
"""``from hebrew_asr import Transcriber`` imports it when it is asked for, not before."""
NO_TORCH = ("text", "config")
MAX_LINES, MAX_ROOM_LINES, MAX_FUNCTION_LINES = 350, 2500, 60


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes() -> list[tuple[Path, ast.stmt]]:
    """Every import statement and function of the package, and where it stands."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))]
    return [(path, node) for path, tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]


def imports() -> list[tuple[Path, str]]:
    """Every import statement of the package, as (file, dotted name)."""
    found = []
    for path, node in nodes():
        if isinstance(node, ast.Import):
            found += [(path, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((path, node.module))
    return found


def is_root(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def test_imports_point_downwards():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    upwards = []
    for path, name in imports():
        own, parts = room_of(path), name.split(".")
        if parts[0] != "hebrew_asr" or len(parts) == 1 or parts[1] == own or (own, parts[1]) in FRONT_DOOR:
            continue
        if floor_of[parts[1]] >= floor_of[own]:
            upwards.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upwards


def test_every_room_has_a_floor_and_says_what_it_may_import():
    """The second paragraph of a room's docstring names the rooms that it may import, or those that it must not."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {room for rooms in FLOORS for room in rooms if (PACKAGE / room).is_dir()}
    imported: dict[str, set[str]] = {room: set() for room in rooms}
    for path, name in imports():
        own, parts = room_of(path), name.split(".")
        if own in rooms and parts[0] == "hebrew_asr" and len(parts) > 1 and parts[1] in rooms - {own}:
            imported[own].add(parts[1])
    untrue = {}
    for room in rooms:
        said = (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "").split("\n\n")[1]
        named = {word for word in re.findall(r"\w+", said) if word in rooms}
        surplus = imported[room] & named if said.startswith("Imports every room") else imported[room] - named
        if surplus:
            untrue[room] = f"its __init__.py says {said!r}, but it imports {', '.join(sorted(surplus))}"
    assert not untrue


def test_guarded_imports():
    assert not [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, name in imports()
        if (is_root(name, "deepspeed", "torch.distributed") and room_of(path) not in ("engine", "flat"))
        or (is_root(name, "torch") and room_of(path) in NO_TORCH)
    ]


def test_functions_stay_readable():
    long = [
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path, node in nodes()
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_files_and_rooms_stay_readable():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {str(path): count for path, count in lines.items() if count > MAX_LINES}
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        rooms[room_of(path)] = rooms.get(room_of(path), 0) + count
    assert not {room: count for room, count in rooms.items() if count > MAX_ROOM_LINES}


def test_what_needs_no_torch_does_not_load_it(tmp_path):
    """It takes seconds: help, versions, lists of runs and the checks of a machine without GPUs come at once.

    So do conversion's workers and plain options, without pydantic, and the split and manifests, without pandas.
    """
    (tmp_path / "m.jsonl").write_text('{"audio": "a", "text": "language Hebrew<asr_text>a b", "duration_s": 1}')
    script = """
import sys
from pathlib import Path
import hebrew_asr.corpus.preparation.convert
if {"pydantic", "pyarrow.compute"} & {*sys.modules}:
    sys.exit("a worker of prepare loads pydantic or pyarrow.compute")
from hebrew_asr.corpus.preparation.assemble import Record, assemble
from hebrew_asr.corpus.preparation.options import PrepareOptions
groups = [("uuid:same", f"episode:{n}")[n > 1 :] for n in range(40)]
kept = (Record("kept", f"a/{n}", 0, n, fingerprint=f"{n}", groups=own) for n, own in enumerate(groups))
options = PrepareOptions(source=("a",), out=Path("b"), processes=1)
options.check()
if "pydantic" in sys.modules:
    sys.exit("plain options load pydantic")
if not assemble(kept, options).eval or "pandas" in sys.modules:
    sys.exit("the split loads pandas")
from hebrew_asr.data.manifest import index_manifest, open_manifest
clips = open_manifest(index_manifest(Path("m.jsonl")), check_audio=False)
if "pandas" in sys.modules or clips[::-1].durations_s.tolist() != [1]:
    sys.exit("a manifest loads pandas")
from hebrew_asr.cli import COMMANDS, main
for words in ["--help"], ["--version"], ["runs"], ["doctor", "--run", "run"], *([name, "--help"] for name in COMMANDS):
    main(words)
    loaded = {"torch", "transformers", "deepspeed", "datasets"} & {*sys.modules}
    if loaded:
        sys.exit(f"{words} loads {loaded}")
"""
    alone = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(PACKAGE.parent),
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env={**os.environ, **alone}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
