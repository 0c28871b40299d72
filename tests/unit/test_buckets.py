"""Where gradients lie in buckets: everything once, what is above the seam first; and which rows count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.flat.buckets import Group, Layout, Run
from hebrew_asr.flat.live_rows import LiveRows

SIZES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=4)


def groups_of(sizes: list[list[int]], above: list[bool], ranks: int) -> list[Group]:
    """Groups of vectors, end to end, each group padded to whole slices."""
    found = []
    for group, is_above in zip(sizes, above, strict=False):
        runs = [Run(torch.zeros(size), 0, size, sum(group[:index])) for index, size in enumerate(group)]
        found.append(Group(runs, -(-sum(group) // ranks), is_above))
    return found


def groups_of_shares(sizes: list[list[int]], above: list[bool], ranks: int) -> list[Group]:
    """As ZeRO-3 has them: each vector padded to whole slices, and a rank's slices of them end to end."""
    found = []
    for group, is_above in zip(sizes, above, strict=False):
        shares = [-(-size // ranks) for size in group]
        runs = []
        for index, (size, share) in enumerate(zip(group, shares, strict=True)):
            source = torch.zeros(size)
            for rank in range(ranks):
                length = max(0, min(share, size - rank * share))
                runs.append(Run(source, rank * share, length, rank * sum(shares) + sum(shares[:index])))
        found.append(Group(runs, sum(shares), is_above))
    return found


@given(
    st.sampled_from([groups_of, groups_of_shares]),
    SIZES,
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(1, 5),
    st.integers(1, 200),
)
def test_every_gradient_comes_to_its_owner_once(laid_out, sizes, above, ranks, bucket_size):
    groups = laid_out(sizes, above, ranks)
    layout = Layout.of(groups, ranks, bucket_size)
    sources = {run.source for group in groups for run in group.runs}
    for source in sources:
        source.grad = torch.rand(source.numel()) + 1
    slices = torch.full((ranks, layout.length), torch.nan)
    given_away = {source: source.grad.clone() for source in sources}
    for bucket in layout.buckets:
        whole = torch.full((ranks * bucket.columns,), torch.nan)
        bucket.take_gradients(whole)
        slices[:, bucket.first : bucket.first + bucket.columns] = whole.view(ranks, -1)
    assert not slices.isnan().any(), "memory was left as it was"
    assert all(source.grad is None for source in sources)
    for group, (first, share) in zip(groups, layout.places, strict=True):
        flat = slices[:, first : first + share].flatten()
        for run in group.runs:
            expected = given_away[run.source][run.first : run.first + run.length]
            assert torch.equal(flat[run.start : run.start + run.length], expected)


@given(SIZES, st.lists(st.booleans(), min_size=4, max_size=4), st.integers(2, 5), st.integers(1, 200))
def test_what_is_above_the_seam_waits_for_nothing_below(sizes, above, ranks, bucket_size):
    groups = groups_of(sizes, above, ranks)
    layout = Layout.of(groups, ranks, bucket_size)
    early = set().union(*(bucket.sources for bucket in layout.buckets[: layout.num_above]))
    late = set().union(*(bucket.sources for bucket in layout.buckets[layout.num_above :]))
    assert early == {run.source for group in groups if group.is_above for run in group.runs}
    assert late == {run.source for group in groups if not group.is_above for run in group.runs}


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_live_rows_are_all_that_train_and_as_many_of_every_slice(rows, columns, ranks, padding, draw):
    weight = torch.arange(1.0, 1 + rows * columns).view(rows, columns)
    trains = sorted(draw.sample(range(rows), draw.randint(0, max(1, rows // 8))))
    stays = torch.ones(rows, 1, dtype=torch.bool)
    stays[trains] = False
    share = -(-weight.numel() // ranks) + padding
    parts = [LiveRows.of(weight, stays, share, rank, ranks) for rank in range(ranks)]
    if parts[0] is None:
        assert parts == [None] * ranks
        return
    whole = torch.zeros(ranks * share)
    whole[: weight.numel()] = weight.flatten()
    weight.grad = weight.masked_fill(stays, 0.0)
    values = parts[0].grad
    assert values is not None and len(values) == parts[0].numel() == ranks * parts[0].length
    found = torch.zeros_like(whole)
    parts[0].put_all(found, values)
    assert torch.equal(found[: weight.numel()].view_as(weight), weight.grad)
    for rank, (part, own) in enumerate(zip(parts, whole.view(ranks, share), strict=True)):
        again = torch.zeros_like(own)
        part.put_own(again, values.view(ranks, -1)[rank])
        assert torch.equal(again, found.view(ranks, share)[rank]), "what a rank owns is not what all know it by"
        kept = own.clone()
        part.put_own(kept, part.own(own))
        assert torch.equal(kept, own)
    parts[0].grad = None
    assert weight.grad is None and parts[0].grad is None


@pytest.mark.parametrize(("trains", "is_worth_it"), [(0.02, True), (0.9, False)])
def test_a_weight_of_which_most_trains_is_handled_whole(trains, is_worth_it):
    stays = torch.arange(1000)[:, None] >= 1000 * trains
    assert (LiveRows.of(torch.zeros(1000, 8), stays, 4000, 0, 2) is not None) == is_worth_it
