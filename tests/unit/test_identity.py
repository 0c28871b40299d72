"""What makes two ranks, or a run and its resumption, the same run: fingerprints, and which keys of a recipe count."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

import hebrew_asr
from hebrew_asr.checkpoints.base_model import BaseModel
from hebrew_asr.config.recipe import Recipe, as_begun, changes, load_recipe
from hebrew_asr.config.values import Freedom, flatten, free_keys
from hebrew_asr.training.identity import git_commit, how_ranks_differ, shared_parts
from tests.support.native import build

LEARNING = {
    "model.random_weights",
    "data.max_duration_s",
    "seed",
    "clips_per_step",
    "unfrozen_layers",
    "phases.name",
    "phases.epochs",
    "phases.learning_rates",
    "augmentation",
    "optimizer",
}
"""What decides what is learned: all that a run must keep."""


@pytest.fixture(scope="module")
def model():
    return build()


def test_the_fingerprint_is_of_values_not_of_their_precision(model):
    asr, tokenizer = model
    kept = {name: parameter.detach().clone() for name, parameter in asr.named_parameters()}
    whole = BaseModel.of(asr, tokenizer, ".")
    try:
        half = BaseModel.of(asr.to(torch.bfloat16), tokenizer, ".")
        again = BaseModel.of(asr.to(torch.float32), tokenizer, ".")
    finally:
        asr.to(torch.float32)
        for name, parameter in asr.named_parameters():
            parameter.data = kept[name]
    assert whole.weights == half.weights == half.weights_exact == again.weights
    assert whole.weights_exact not in (again.weights_exact, half.weights_exact), "rounded weights are others in fp32"
    assert whole == BaseModel.of(asr, tokenizer, ".")
    assert whole.differs_from(again) == "weights"


@pytest.mark.parametrize("change", ["a bit", "two elements exchanged", "two tensors exchanged"])
def test_any_other_weight_shows(model, change):
    asr, tokenizer = model
    before = BaseModel.of(asr, tokenizer, ".")
    first, second = (asr.get_parameter(f"model.audio_tower.layers.{i}.fc1.weight") for i in (0, 1))
    kept = first.data.clone(), second.data.clone()
    with torch.no_grad():
        if change == "a bit":
            first.view(torch.int32)[0, 0] ^= 1
        elif change == "two elements exchanged":
            first[0, 0], first[1, 1] = kept[0][1, 1], kept[0][0, 0]
        else:
            first.copy_(kept[1]), second.copy_(kept[0])
        after = BaseModel.of(asr, tokenizer, ".")
        first.copy_(kept[0]), second.copy_(kept[1])
    assert after.differs_from(before) == "weights"
    assert (after.weights == before.weights) == (change == "a bit"), "the last bit of fp32 is none of bf16's"


def test_another_vocabulary_shows(model):
    asr, tokenizer = model
    before = BaseModel.of(asr, tokenizer, ".")
    tokenizer.add_tokens(["<new>"])
    assert BaseModel.of(asr, tokenizer, ".").differs_from(before) == "vocabulary"


def test_every_key_that_decides_what_is_learned_counts_and_no_other():
    """A new field counts unless it says beside it that it does not."""
    recipe = load_recipe("round2")
    free = free_keys(Recipe, *Freedom)
    counted = set(flatten(recipe.to_dict(), free))
    plain = {".".join(part for part in key.split(".") if not part.isdigit()) for key in counted}
    assert {key for key in LEARNING if not any(p == key or p.startswith(f"{key}.") for p in plain)} == set()
    assert {p for p in plain if not any(p == key or p.startswith(f"{key}.") for key in LEARNING)} == set()


@pytest.mark.parametrize(
    "change",
    [
        *("data.folder=/elsewhere", "data.workers=1", "data.prepare=false", "data.allow_outside=true", "max_steps=3"),
        *("name=another", "model.path=/moved", "logging.wandb=false", "evaluation.batch_clips=1"),
        *("checkpoints.keep_last=9", "faults.non_finite_patience=0", "phases.0.title=so"),
    ],
)
def test_what_decides_nothing_may_change(change):
    before = load_recipe("round2").to_dict()
    assert not changes(before, load_recipe("round2", [change]))
    told = changes(before, load_recipe("round2", [change]), counted=["model.path"])
    assert bool(told) == change.startswith("model.path")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay: 0.01 in the run, 0.1 now"),
        ("phases.1.epochs=9", "phases.1.epochs: 3 in the run, 9 now"),
        ("phases.0.learning_rates.head=1e-3", "phases.0.learning_rates.head: 0.0001 in the run, 0.001 now"),
        ("augmentation.speed_factors=[1.0]", "augmentation.speed_factors: [0.9, 1.0, 1.1] in the run, [1.0] now"),
        ("unfrozen_layers.llm_top=3", "unfrozen_layers.llm_top: 12 in the run, 3 now"),
    ],
)
def test_what_decides_is_told_by_its_key(change, told):
    before = json.loads(json.dumps(load_recipe("round2").to_dict()))
    assert changes(before, load_recipe("round2", [change])) == [told]


def test_a_key_that_only_one_recipe_has_is_told():
    before = load_recipe("round2").to_dict()
    del before["optimizer"]["eps"]
    before["optimizer"]["momentum"] = 0.9
    assert changes(before, load_recipe("round2")) == [
        "optimizer.eps: nothing in the run, 1e-08 now",
        "optimizer.momentum: 0.9 in the run, nothing now",
    ]


def test_ranks_are_told_apart_by_key_and_number():
    def parts(seed):
        return {"recipe": {**shared_parts(load_recipe("round2")), "seed": seed}, "code": {"torch": "2.11"}}

    assert how_ranks_differ([parts(seed) for seed in (42, 42, 42, 43, 42)]) == [
        "recipe seed: 42 on ranks 0-2, 4, 43 on rank 3"
    ]
    assert how_ranks_differ([parts(42)] * 3) == []


def test_ranks_may_differ_in_where_things_lie():
    here, there = (shared_parts(load_recipe("round2", [f"data.folder={folder}", "data.workers=2"])) for folder in "ab")
    assert here == there
    assert here != shared_parts(load_recipe("round2", ["evaluation.every_steps=3"]))


def test_a_run_that_is_older_than_a_key_goes_on_as_it_began():
    """Every head row moved before ``optimizer.absent_tokens`` existed."""
    before = load_recipe("round2").to_dict()
    del before["optimizer"]["absent_tokens"]
    now = as_begun(load_recipe("round2"), before)
    assert now.optimizer.absent_tokens == "trained" and not changes(before, now)
    assert changes(before, load_recipe("round2")) == ['optimizer.absent_tokens: "trained" in the run, "frozen" now']
    assert (
        as_begun(load_recipe("round2"), now.to_dict()) == load_recipe("round2") == as_begun(load_recipe("round2"), None)
    )


@pytest.mark.skipif(not (Path(hebrew_asr.__file__).parents[1] / ".git").exists(), reason="this is no clone")
def test_the_commit_is_told():
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    assert git_commit() == subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def test_a_run_needs_no_git(monkeypatch, tmp_path):
    """As in the image of launch/Dockerfile."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_a_repository_around_an_installed_package_is_not_asked(monkeypatch, tmp_path):
    git, package = ["git", "-C", str(tmp_path)], tmp_path / "site" / "hebrew_asr"
    subprocess.run([*git, "init", "-q"], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    package.mkdir(parents=True)
    monkeypatch.setattr(hebrew_asr, "__file__", str(package / "__init__.py"))
    assert git_commit() is None
