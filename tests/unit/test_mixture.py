"""Mixtures of data sets: their shares, in what order their clips come, and what is said of wrong ones."""

from __future__ import annotations

from collections import Counter

import pytest

from hebrew_asr.cli import main
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.data.mixture import Mixture, set_of
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.errors import UsageError

SIZES = {"knesset": 600, "crowd": 90, "own": 10}
CLIPS = Clips.of(
    Clip(f"{name}{n}.flac", "language Hebrew<asr_text>שלום", f"{name}/{n}", 1.0 + n % 7)
    for name, size in SIZES.items()
    for n in range(size)
)


def mixture(*changes: str) -> Mixture:
    found = Mixture.of(CLIPS, load_recipe("round2", [*changes]))
    assert found is not None
    return found


def sampler(mixed: Mixture) -> StepSampler:
    return StepSampler(CLIPS.durations_s, Batching(64, 4, 2, 8), 42, mixed.clips)


def names_in(steps: range, of: StepSampler) -> Counter[str]:
    return Counter(set_of(CLIPS[clip].id) for step in steps for clip in of.clips_of_step(step))


def test_an_epoch_has_the_shares_that_are_asked_for_in_the_phases_that_ask():
    found = sampler(mixture('data.weights={"B": {"knesset": 1, "crowd": 2, "own": 1}}', 'data.temperature={"A": 1}'))
    epoch = found.steps_per_epoch
    assert epoch == 11  # of 700 clips, as without a mixture
    assert names_in(range(epoch), found) == {"knesset": 175, "crowd": 350, "own": 175}
    assert names_in(range(epoch, 2 * epoch), found) == {"knesset": 175, "crowd": 350, "own": 175}
    assert sorted(clip for step in range(2 * epoch, 3 * epoch) for clip in found.clips_of_step(step)) == [*range(700)]


def test_a_set_without_weight_takes_no_part_and_temperature_makes_shares_alike():
    assert mixture('data.weights={"B": {"own": 3}}').shares(0) == {"crowd": 0, "knesset": 0, "own": 1}
    by_hand = {name: size**0.5 for name, size in SIZES.items()}
    shares = mixture('data.temperature={"A": 2}').shares(1)
    assert shares == pytest.approx({name: root / sum(by_hand.values()) for name, root in by_hand.items()}, abs=0.002)


def test_all_clips_of_a_set_come_before_one_comes_again_through_the_epochs_of_a_phase():
    mixed = mixture('data.weights={"A": {"knesset": 1, "crowd": 1}}')
    drawn = [clip for epoch in (2, 3, 4) for clip in mixed.clips(epoch).tolist()]
    for name in ("knesset", "crowd"):
        times = Counter(clip for clip in drawn if set_of(CLIPS[clip].id) == name)
        assert len(times) == SIZES[name] and max(times.values()) - min(times.values()) <= 1


def test_a_step_is_the_same_in_any_order_and_dealt_whole_though_clips_come_twice():
    mixed, again = (mixture('data.weights={"B": {"own": 9, "crowd": 1}}') for _ in range(2))
    found, fresh = sampler(mixed), sampler(again)
    found.deal(40), found.deal(3)
    for step in (17, 4, 10, 30):
        chosen = fresh.clips_of_step(step)
        assert found.deal(step) == fresh.deal(step)
        assert sorted(draw.clip for own in found.deal(step) for part in own for draw in part) == sorted(chosen)
    assert len(set(fresh.clips_of_step(4))) < 64


def test_each_draw_knows_how_often_its_clip_came_before_in_the_epoch():
    found = sampler(mixture('data.weights={"B": {"own": 9, "crowd": 1}}'))
    whole = range(found.steps_per_epoch, 2 * found.steps_per_epoch)
    later = found.deal(whole[7])  # as a run that resumes there
    dealt = {step: [draw for own in found.deal(step) for part in own for draw in part] for step in whole}
    assert [draw for own in later for part in own for draw in part] == dealt[whole[7]]
    before: Counter[int] = Counter()
    for step, draws in dealt.items():
        assert len(set(draws)) == len(draws), "two turns of a clip are one"
        assert sorted(draws) == sorted(found.draws_of_step(step))
        for draw in found.draws_of_step(step):
            assert draw.times_before == before[draw.clip]
            before[draw.clip] += 1
    assert max(before.values()) > 40 and set(before.values()) != {1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('data.weights={"B": {"kneset": 1}}', "no training clip is of kneset.*knesset"),
        ('data.weights={"C": {"own": 1}}', "name a phase C"),
        ('data.weights={"B": {}}', "data.weights.B names no data set"),
        ('data.weights={"B": {"own": 0}}', "data.weights"),
        ('data.temperature={"B": 0.5}', "data.temperature"),
    ],
)
def test_a_wrong_mixture_is_named(change, told):
    with pytest.raises(UsageError, match=told):
        mixture(change)


def test_weights_and_temperature_of_one_phase_exclude_each_other():
    with pytest.raises(UsageError, match=r"phase B has data\.weights and data\.temperature"):
        mixture('data.weights={"B": {"own": 1}}', 'data.temperature={"B": 2}')


def test_ids_that_name_no_sets_are_refused():
    clips = Clips.of(Clip("a", "language Hebrew<asr_text>א", f"c{n}", 1.0) for n in range(1001))
    with pytest.raises(UsageError, match="more than 1,000 here"):
        Mixture.of(clips, load_recipe("round2", ['data.temperature={"A": 2}']))


def test_a_plan_needs_no_data_sets(tmp_path, capsys):
    mixed = ["--set", f"data.folder={tmp_path}", "--set", 'data.weights={"B": {"own": 1}}']
    assert main(["plan", "--ds", "a100x8", *mixed]) == 0, capsys.readouterr().err
