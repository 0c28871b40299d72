"""The recipe: shipped ones hold the design's values; everything wrong is told at once, by name."""

from __future__ import annotations

import json

import pytest

from hebrew_asr.config.recipe import RECIPES_DIR, load_recipe
from hebrew_asr.config.schedule import Schedule
from hebrew_asr.errors import UsageError

SHIPPED = sorted(path.stem for path in RECIPES_DIR.glob("*.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_under_its_own_name(name):
    assert load_recipe(name).name == name


def test_round2_is_the_design():
    recipe = load_recipe("round2")
    assert [(phase.name, phase.epochs) for phase in recipe.phases] == [("B", 2), ("A", 3)]
    assert recipe.phases[0].learning_rates == {"projector": 2e-4, "llm_top": 5e-5, "head": 1e-4}
    assert recipe.phases[1].learning_rates == {"projector": 1e-4, "llm_top": 3e-5, "head": 1e-4, "audio_top": 3e-5}
    assert recipe.unfrozen_layers == {"llm_top": 12, "audio_top": 8}
    assert recipe.clips_per_step == 64
    schedule = Schedule(recipe, recipe.steps_per_epoch(186_812))
    assert schedule.total_steps == 14_595
    assert schedule.phase_starts == [0, 5_838]


@pytest.mark.parametrize("name", ["demo", "memorize"])
def test_trying_it_out_tells_nobody(name):
    """Whoever is logged in at wandb did not ask for the demo to be there, nor for their recordings' texts."""
    assert not load_recipe(name).logging.wandb


def test_all_mistakes_at_once_with_suggestions(tmp_path):
    values = json.loads((RECIPES_DIR / "round2.json").read_text())
    values["optimizer"]["weight_decai"] = 0.1
    values["phases"][1]["epoks"] = 3
    values["seed"] = "abc"
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError) as caught:
        load_recipe(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "unknown key optimizer.weight_decai (did you mean weight_decay?)" in message
    assert "unknown key phases.1.epoks (did you mean epochs?)" in message
    assert "seed" in message
    assert "'abc'" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("phases=[]", "phases is empty"),
        ("phases.0.epochs=0", "phases.0.epochs must be at least 1, not 0"),
        ('phases.0.learning_rates={"head": 0}', "phases.0.learning_rates.head must be at least 0.000000000001"),
        ("phases.0.learning_rates={}", "phases.0.learning_rates is empty"),
        ("phases.1.name=B", "two phases are called B"),
        ('phases.1.learning_rates={"head": 1e-4}', "phase A leaves out projector, which phase B trains.*out llm_top"),
        ("clips_per_step=0", "clips_per_step must be at least 1"),
        ("clips_per_step=100000", "clips_per_step must be at most 65536"),
        ("data.workers=100000", "data.workers must be at most 256"),
        ("augmentation.num_freq_masks=1000000", "augmentation.num_freq_masks must be at most 1000"),
        ("evaluation.min_new_tokens=1000000", "evaluation.min_new_tokens must be at most 4096"),
        ("optimizer.clip_grad_norm=1e-300", "optimizer.clip_grad_norm must be at least 0.000000001"),
        ("optimizer.beta2=1.5", "optimizer.beta2 must be below 1"),
        ("optimizer.weight_decay=NaN", "optimizer.weight_decay must be a finite number"),
        ("augmentation.speed_factors=[3]", r"augmentation.speed_factors.0 must be at most 2"),
        ("evaluation.wer_mode=fuzzy", "evaluation.wer_mode must be 'strict', 'ivrit' or 'lenient', not 'fuzzy'"),
        ("unfrozen_layers.llm_tip=3", "unknown key unfrozen_layers.llm_tip .did you mean llm_top"),
        ("weight_decay=0.1", r"unknown key weight_decay \(did you mean optimizer.weight_decay"),
        ("data.prepare=yes", "data.prepare must be true or false, not 'yes'"),
        ("model=[1]", r"model must be an object, not \[1\]"),
        ("data.folder=\udcff", "lone surrogate"),
        ("nothing", "key=value"),
        ("seed.x=1", "has no parts"),
        pytest.param(f"seed={'9' * 5000}", "seed must be a valid integer", id="digits"),
        pytest.param(f"model={'[' * 100_000}", "model must be an object", id="nested"),
    ],
)
def test_impossible_values_are_refused(change, told):
    with pytest.raises(UsageError, match=told):
        load_recipe("round2", [change])


def test_overrides_reach_lists_and_plain_text():
    recipe = load_recipe("round2", ["phases.1.epochs=1", "model.path=/some/where", "optimizer.weight_decay=0.5"])
    assert (recipe.phases[1].epochs, recipe.model.path, recipe.optimizer.weight_decay) == (1, "/some/where", 0.5)


def test_missing_recipe_names_the_nearest_and_the_shipped_ones():
    cases = (("round3", "did you mean round2"), ("06b", "did you mean 0.6b"), ("x/y.json", "one of 0.6b, demo"))
    for given, told in cases:
        with pytest.raises(UsageError, match=told):
            load_recipe(given)


def test_rates_rise_fall_and_join():
    recipe = load_recipe("round2", ["optimizer.warmup_share=0.1", "optimizer.join_warmup_steps=5"])
    schedule = Schedule(recipe, 20)
    peak = recipe.phases[0].learning_rates["head"]
    assert schedule.rates(0)["head"] == pytest.approx(peak / 10)
    assert schedule.rates(9)["head"] == pytest.approx(peak)
    assert all(rate > 0 for step in range(100) for rate in schedule.rates(step).values())
    assert "audio_top" not in schedule.rates(39)
    joined, whole = schedule.rates(40), schedule.rates(44)
    decay = (100 - 40) / 90
    assert joined["audio_top"] == pytest.approx(3e-5 * decay / 5)
    assert joined["head"] == pytest.approx(1e-4 * decay)
    assert whole["audio_top"] == pytest.approx(3e-5 * (100 - 44) / 90)
    assert schedule.rates(99)["head"] < schedule.rates(98)["head"]


def test_highest_rates_are_those_of_the_steps_that_will_be_taken():
    """Phase A of round2 begins at 61 % of its rates, whatever the recipe says; one that is not reached has none."""
    whole = Schedule(load_recipe("round2"), 2919)
    for index, steps in enumerate((range(5838), range(5838, 14_595))):
        rates = [whole.rates(step) for step in steps]
        assert whole.highest_rates(index) == {group: max(taken[group] for taken in rates) for group in rates[0]}
    assert whole.highest_rates(0) == load_recipe("round2").phases[0].learning_rates
    assert whole.highest_rates(1)["head"] == pytest.approx(0.612e-4, rel=1e-3)
    assert whole.highest_rates(1)["audio_top"] == pytest.approx(0.6053 * 3e-5, rel=1e-3)
    short = Schedule(load_recipe("round2", ["max_steps=100"]), 2919)
    assert short.last_step == 100
    assert short.highest_rates(0)["head"] == short.rates(99)["head"] < 0.35e-4
    assert short.highest_rates(1) == {}


def test_data_is_a_shorthand_of_set():
    from hebrew_asr.training.arguments import TrainArguments, as_argv

    arguments = TrainArguments(ds="x.json", data="007", set=["data.folder=other", "seed=3"])
    recipe = arguments.load_recipe()
    assert (recipe.data.folder, recipe.seed) == ("007", 3)
    assert "007" in as_argv(arguments, TrainArguments)
