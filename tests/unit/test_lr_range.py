"""What a learning-rate range test is read as, and what of its options is refused."""

from __future__ import annotations

import json
import math

import pytest

from hebrew_asr.cli import main
from hebrew_asr.commands.lr_range import _print_curve
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.errors import TrainingFault
from hebrew_asr.planning.lr_curve import has_diverged, lr_curve, only_finite
from hebrew_asr.planning.lr_range import ramp_course
from hebrew_asr.report.records import TrainRecord
from hebrew_asr.watching.console import Console
from hebrew_asr.watching.progress import Course

FACTORS = [0.01 * 10 ** (4 * step / 99) for step in range(100)]


def bowl(factor: float, burst: float = math.inf) -> float:
    """A loss that falls fastest around a factor of 1, is lowest around 10, and bursts."""
    return 4.0 - 2.0 / (1 + math.exp(-4 * math.log(factor))) + (factor / burst) ** 3


def test_a_loss_that_falls_and_bursts(capsys):
    losses = [bowl(factor, 20) for factor in FACTORS]
    stop = next(number for number in range(1, 101) if has_diverged(losses[:number]))
    curve = lr_curve(FACTORS[:stop], losses[:stop])
    assert curve.diverged and curve.steepest is not None and curve.suggested is not None
    assert 0.7 < curve.steepest < 2.5 < curve.lowest < 20, "the average lags a little"
    assert curve.suggested == min(curve.steepest, curve.lowest / 10)
    recipe = load_recipe("round2")
    _print_curve(recipe, 1, curve)
    told = capsys.readouterr().out
    assert "then it diverged" in told and '--set \'phases.1.learning_rates={"projector": ' in told
    assert load_recipe("round2", [told.rpartition("--set '")[2].rstrip("\n'")]).phases[1].learning_rates.keys() == (
        recipe.phases[1].learning_rates.keys()
    )


def test_a_loss_that_is_still_falling():
    curve = lr_curve(FACTORS, [bowl(factor) for factor in FACTORS])
    assert not curve.diverged and curve.suggested == curve.steepest


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_where_it_ends(last):
    losses = [bowl(factor) for factor in FACTORS[:60]]
    kept = json.loads(json.dumps(only_finite([*losses, last]), allow_nan=False))
    curve = lr_curve(FACTORS[:61], kept)
    assert curve.diverged and len(curve.smoothed) == 60
    assert has_diverged([*losses, math.nan]) and has_diverged([math.inf]) and not has_diverged([])


def test_a_loss_that_falls_for_few_steps_is_no_ground_for_a_suggestion(capsys):
    losses = [6.51, 6.49, 6.36, 6.08, 5.76, 5.25]
    _print_curve(load_recipe("round2"), 0, lr_curve(FACTORS[::17], losses))
    assert "no suggestion: the loss fell for too few steps to judge by" in capsys.readouterr().out


def test_a_loss_that_only_rises_suggests_nothing(capsys):
    curve = lr_curve(FACTORS, [1 + 0.001 * step for step in range(100)])
    assert curve.suggested is None
    _print_curve(load_recipe("round2"), 0, curve)
    assert "no suggestion: the loss did not fall" in capsys.readouterr().out


def test_a_loss_of_zero_is_finite():
    curve = lr_curve(FACTORS, [0.0] * 100)
    assert not curve.diverged and curve.smoothed == [0.0] * 100 and curve.suggested is None


def test_no_finite_loss_at_all_is_the_fault_of_the_model_or_the_data():
    with pytest.raises(TrainingFault, match="no step had a finite loss, not even the first"):
        lr_curve([1.0], only_finite([math.nan]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--phase", "C"], "has no phase C; it has B, A"),
        (["--lowest", "2", "--highest", "1"], "--lowest 2 must be below --highest 1"),
        (["--steps", "0"], "--steps must be"),
    ],
)
def test_a_test_that_cannot_be_is_one_line(capsys, options, told):
    assert main(["lr-range", "--ds", "cpu", *options]) == 2
    assert told in capsys.readouterr().err


def test_the_view_shows_how_far_the_test_is_and_not_the_recipe(capsys):
    recipe = load_recipe("round2")
    console = Console(Course(recipe=recipe, steps_per_epoch=30, last_step=150, eval_clips=5), line_every_s=0.0)
    course = ramp_course(recipe, 0, 100, 30)
    assert course.recipe.epochs == 4
    console.follow(course)
    console.write(
        TrainRecord(
            step=100, epoch=4, phase="B", lr={}, clips=8, audio_s=9.0, step_s=2.0, loss=1.0, grad_norm=1.0, tokens=9
        )
    )
    told = capsys.readouterr().out
    assert "step 100/100 | epoch 4 | phase B" in told
    assert "the guide" not in told and "evaluation" not in told


def test_a_mistake_is_told_once_and_not_by_each_rank(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["lr-range", "--ds", "cpu", "--data", "nowhere"]) == 3
    assert capfd.readouterr().err.count("--data nowhere: no set is there") == 1
