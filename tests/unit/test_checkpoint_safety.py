"""Nothing that is read can run code, and nothing damaged or half-written is taken for a checkpoint."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch

import hebrew_asr
from hebrew_asr.checkpoints import sealed
from hebrew_asr.checkpoints.sealed import FORMAT, find_checkpoints
from hebrew_asr.cli import main
from hebrew_asr.engine.optimizer_state import KINDS, PartitionState, StateReader, save_partitions
from hebrew_asr.engine.zero import Fragment
from hebrew_asr.errors import CheckpointError

SOURCE = Path(hebrew_asr.__file__).parent
OPTIMIZER = "optimizer-rank00000.safetensors"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """One whole checkpoint, of a parameter of 6 elements."""
    from hebrew_asr.checkpoints.sealed import seal_of as _seal

    folder = tmp_path / "checkpoints" / "step-000003"
    folder.mkdir(parents=True)
    tensors = {kind: torch.arange(6, dtype=torch.float32) for kind in KINDS}
    save_partitions(folder / OPTIMIZER, [PartitionState("head.decay", [Fragment("w", 0, 6, 0)], tensors, 3.0)])
    (folder / "state.json").write_text(json.dumps({"format": FORMAT, "step": 3, "state": {}}))
    files = {name: _seal(folder / name) for name in (OPTIMIZER, "state.json")}
    (folder / "COMPLETE.json").write_text(json.dumps({"files": files}))
    return folder


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_whole_one_is_found_and_read(checkpoint):
    (found,) = find_checkpoints(checkpoint.parent)
    found.verify()
    assert found.step == 3
    assert StateReader(checkpoint).read("w", "master", 2, 3).tolist() == [2.0, 3.0, 4.0]


def test_a_pickle_in_place_of_state_is_refused_and_never_run(checkpoint, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists(), "the trap works"
    trace.unlink()
    (checkpoint / OPTIMIZER).write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(CheckpointError, match=r"cannot read optimizer state .*optimizer-rank00000"):
        StateReader(checkpoint)
    assert not trace.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_named(checkpoint, damage):
    (checkpoint / OPTIMIZER).write_bytes(damage((checkpoint / OPTIMIZER).read_bytes()))
    (found,) = find_checkpoints(checkpoint.parent)
    with pytest.raises(CheckpointError, match=f"{OPTIMIZER} is damaged"):
        found.verify()


@pytest.mark.parametrize("word", [b"start", b"fragments", b"group"])
def test_a_damaged_layout_is_told_before_any_hash_is_taken(checkpoint, word, capsys):
    whole = (checkpoint / OPTIMIZER).read_bytes()
    (checkpoint / OPTIMIZER).write_bytes(whole.replace(word, word[:-1] + b"x", 1))
    out = checkpoint.parents[1] / "mean"
    assert main(["average", str(checkpoint.parents[1]), "--out", str(out)]) == 5
    assert capsys.readouterr().err.startswith(f"error: cannot read optimizer state {checkpoint / OPTIMIZER}: ")


def test_half_written_ones_are_passed_over(checkpoint):
    (checkpoint.parent / ".tmp-step-000009").mkdir()
    (checkpoint.parent / "step-000012").mkdir()
    (checkpoint.parent / "step-000012" / "state.json").write_text("{")
    assert [found.step for found in find_checkpoints(checkpoint.parent)] == [3]


def test_no_call_reads_pickles_or_runs_remote_code():
    """In all of the package; ``torch.load`` would be allowed with weights_only=True."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in ("pickle.load", "pickle.loads", "np.load", "joblib.load"), path
            assert called != "torch.load" or keywords.get("weights_only") == "True", path
            assert keywords.get("trust_remote_code", "False") == "False", path


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_ranks_of_a_machine_hash_each_file_once_between_them(checkpoint, monkeypatch, ranks):
    (found,) = find_checkpoints(checkpoint.parent)
    hashed = []
    monkeypatch.setattr(sealed, "seal_of", lambda file: hashed.append(file.name) or found.files[file.name])
    for rank in range(ranks):
        found.verify(rank, ranks)
    assert sorted(hashed) == sorted(found.files)
