"""Weights in shares: whole while a part needs them and at no other time, with the gradients of a model that has all."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import pack
from hebrew_asr.passes import packed as packed_module
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.compiled import CompiledASR
from hebrew_asr.passes.packed import PackedASR, summed_loss
from hebrew_asr.passes.recorded import _fresh_leaves
from hebrew_asr.passes.sharded import ShardedWeights
from hebrew_asr.text.prompt import PromptTokens
from tests.support.attention import dense_attention
from tests.support.native import build, examples


class Watched(PackedASR):
    """Notes which weights are whole while a part runs, and fails in the part that it is told to."""

    def __init__(self, asr: Any) -> None:
        super().__init__(asr)
        self.whole: set[Tensor] = set()
        self.seen: list[tuple[set[Tensor], set[Tensor]]] = []
        self.fails_in: Callable[..., Tensor] | None = None

    def run(self, part: Callable[..., Tensor], module: Any, *inputs: Any) -> Tensor:
        if part is self.fails_in:
            raise torch.OutOfMemoryError
        modules = [value for value in (module, *inputs) if isinstance(value, nn.Module)]
        needed = {weight for each in modules for weight in each.parameters()}
        self.seen.append((needed, set(self.whole)))
        return super().run(part, module, *inputs)

    def mark(self, weight: Tensor, is_whole: bool) -> None:
        (self.whole.add if is_whole else self.whole.discard)(weight)


@pytest.fixture
def one_of_two():
    """A model as the first of two ranks has it, of which the other half is the same; and what it reads."""
    asr, tokenizer = build()
    for weight in asr.parameters():
        flat = weight.data.view(-1)
        half = -(-len(flat) // 2)  # odd sizes leave padding
        flat[half:] = flat[: len(flat) - half].clone()
        weight.requires_grad_(False)
    for module in (asr.model.audio_tower.ln_post, asr.model.multi_modal_projector, asr.model.language_model.layers[-1]):
        module.requires_grad_(True)
    asr.lm_head.requires_grad_(True)
    batch = pack(examples(tokenizer)[:3], PromptTokens.of(tokenizer), EncoderGeometry())
    module, present_V = Watched(asr), torch.arange(len(asr.lm_head.weight)) % 2 == 0
    AbsentTokens(asr, present_V, asr.device, frozen=True).hold(module)
    return module, (batch, LogMel()(batch))


def gradients(module: PackedASR, given: tuple[Any, Any]) -> tuple[float, dict[str, Tensor]]:
    loss = module(*given)
    loss.backward()
    if module.sharded is not None:
        module.sharded.drop()
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad(set_to_none=True)
    return loss.item(), found


def num_shared(module: nn.Module) -> int:
    return sum(-(-weight.numel() // 2) for weight in module.parameters())


def shard(module: PackedASR, most_together: int = 0, most_kept: int = 0) -> list[int]:
    """Returns what is sent from here on, in elements."""
    sent_lengths: list[int] = []

    def all_gather(received: Tensor, sent: Tensor) -> SimpleNamespace:
        sent_lengths.append(len(sent))
        return SimpleNamespace(wait=lambda: received.copy_(torch.cat([sent, sent])))  # nothing is there before

    mark = module.mark if isinstance(module, Watched) else lambda *_: None
    module.sharded = halves(module, all_gather, mark, most_together, most_kept)
    return sent_lengths


def halves(module: nn.Module, all_gather: Callable, mark: Callable, *most: int) -> ShardedWeights:
    weights = list(module.parameters())
    shares = {weight: weight.detach().reshape(-1)[: -(-weight.numel() // 2)].clone() for weight in weights}
    return ShardedWeights(shares, {weight: weight.shape for weight in weights}, 2, *most, all_gather, mark)


@pytest.mark.parametrize("trains", ["some rows", "all rows"])
def test_a_pass_has_what_it_needs_when_it_needs_it(one_of_two, trains):
    module, given = one_of_two
    module.live = module.live if trains == "some rows" else None
    loss, expected = gradients(module, given)
    model = module.asr.model
    lowest = nn.ModuleList([model.audio_tower.ln_post, model.multi_modal_projector, model.language_model])
    # Forward needs everything, and the tied weight twice; backward what is not below all that trains, but not the tied
    # weight, since the head is there still, and an embedding's gradient needs none.
    forward = num_shared(module) + num_shared(module.asr.lm_head)
    backward = num_shared(lowest) - num_shared(module.asr.lm_head)
    sent = shard(module)
    assert all(weight.untyped_storage().nbytes() == weight.element_size() for weight in module.parameters())
    assert all(weight.isnan().all() for weight in module.parameters()), "who reads one by mistake must notice"
    for number in range(3):
        sent.clear()
        module.seen.clear()
        found_loss, found = gradients(module, given)
        assert found_loss == loss and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(needed == whole for needed, whole in module.seen), "other weights were whole beside a part's own"
        assert not module.whole and all(weight.isnan().all() for weight in module.parameters())
        # That the head is the last part is known after the first pass.
        assert sum(sent) == forward + backward + (0 if number else num_shared(module.asr.lm_head)), f"pass {number}"
        if number == 1:
            second = [*sent]
        assert number < 2 or sent == second


@pytest.mark.parametrize("most_together", [160_000, 1 << 40])
def test_small_parts_that_follow_each_other_share_a_gathering(one_of_two, most_together):
    module, given = one_of_two
    loss, expected = gradients(module, given)
    sent = shard(module, most_together)
    gathered: list[list[int]] = []
    for _ in range(3):
        sent.clear()
        module.seen.clear()
        found_loss, found = gradients(module, given)
        assert found_loss == loss and all(torch.equal(found[name], expected[name]) for name in expected)
        for needed, whole in module.seen:
            assert needed == whole or (needed < whole and sum(one.numel() for one in whole) <= most_together)
        assert not module.whole
        gathered.append([*sent])
    each, together, again = gathered
    assert len(together) < len(each) and sum(together) <= sum(each) and again == together


def test_what_may_stay_whole_is_not_gathered_twice(one_of_two):
    module, given = one_of_two
    loss, expected = gradients(module, given)
    model, head = module.asr.model, module.asr.lm_head
    layers = model.language_model.layers
    kept = {head.weight, *model.language_model.norm.parameters(), *layers[1:].parameters()}
    lowest = nn.ModuleList([model.audio_tower.ln_post, model.multi_modal_projector, layers[0]])
    sent = shard(module, most_kept=sum(weight.numel() for weight in kept))
    for number in range(3):
        sent.clear()
        module.seen.clear()
        found_loss, found = gradients(module, given)
        assert found_loss == loss and all(torch.equal(found[name], expected[name]) for name in expected)
        if number:
            assert module.seen[-1][1] == kept
            assert sum(sent) == num_shared(module) + num_shared(head) + num_shared(lowest)
        assert not module.whole


def test_weights_begin_where_kernels_read_several_elements_at_once():
    layer = nn.Linear(3, 3)
    waits = SimpleNamespace(wait=lambda: None)
    sharded = halves(layer, lambda *_: waits, lambda *_: None, 0, 0)
    seen: list[int] = []

    def note(part: nn.Module, value: Tensor) -> Tensor:
        seen.extend(weight.data_ptr() % 64 for weight in part.parameters())
        return part(value)

    sharded.run(lambda part, *given: part(*given), note, layer, torch.zeros(1, 3), rereads=True)
    assert seen == [0, 0]


def test_what_an_eager_pass_keeps_for_backward_are_no_whole_weights(one_of_two):
    """A linear layer keeps a view of its weight, which no other weight's place changes."""
    module, given = one_of_two
    shard(module)
    kept: list[Tensor] = []
    for _ in range(2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda held: held):
            loss = module(*given)
        views = [tensor for tensor in kept if isinstance(tensor._base, nn.Parameter)]
        held = {view.untyped_storage().data_ptr(): view.untyped_storage().nbytes() for view in views}
        head = module.asr.lm_head.weight
        assert len(views) > 5 and sum(held.values()) <= head.nbytes + head.element_size(), "but the head's, which stays"
        loss.backward()
        module.sharded.drop()
        assert not any(view.untyped_storage().nbytes() for view in views)


def test_a_compiled_pass_learns_the_same(one_of_two, monkeypatch):
    """Graphs of which each serves all layers of its kind, whatever their weights lie in at the moment."""
    eager, given = one_of_two
    monkeypatch.setattr(packed_module, "segment_attention", dense_attention)
    module = CompiledASR(eager.asr, backend="aot_eager_decomp_partition")
    module.live = eager.live
    loss, expected = gradients(module, given)
    shard(module)
    for _ in range(2):
        found_loss, found = gradients(module, given)
        assert module.is_compiled and found_loss == loss and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_leaves_in_the_weights_places_get_their_gradients(one_of_two):
    """As a recording has them, of a pass that all later ones repeat; then the weights are as they were."""
    module, given = one_of_two
    loss, expected = gradients(module, given)
    sent = shard(module, most_together=160_000, most_kept=160_000)
    repeated: list[list[int]] = []
    for _ in range(3):
        repeated.append([*sent] if module.sharded.repeats else [])
        sent.clear()
        gradients(module, given)
    assert not any(repeated[:2]), "the first pass finds what belongs together, the second is the first of its kind"
    assert module.sharded.repeats and repeated[2] == sent
    sent.clear()
    before = dict(module.named_parameters())
    module.begin_pass()
    with _fresh_leaves(module.asr) as leaves, module.sharded.held_by(leaves):
        found_loss = module.loss(*given)
        names = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}
        found = torch.autograd.grad(found_loss, [*names.values()])
        assert found_loss == loss and all(map(torch.equal, found, (expected[name] for name in names)))
        assert names.keys() == expected.keys()
    assert not module.whole
    assert sent == repeated[2], "a recording must gather what any other pass does, or ranks would not meet"
    assert [*module.named_parameters()] == [*before.items()] and not module.sharded._whole
    assert gradients(module, given)[0] == loss


def test_weights_are_replaced_unread_and_compiled_for_already():
    """DeepSpeed's ZeRO-3 gathers a weight that is read off its module while a pass goes on; and what is compiled anew
    while a pass is recorded ends the recording."""

    class Watched(OrderedDict):
        """As DeepSpeed has it: an ordered dictionary with a ``__getitem__`` of its own."""

        def __getitem__(self, name: str) -> Any:
            if not torch.compiler.is_compiling():
                reads.append(name)
            return super().__getitem__(name)

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    layers = [nn.Linear(2, 2, bias=False) for _ in range(2)]  # a place stays empty, which no parameter fills
    module, value = nn.Sequential(*layers), torch.ones(1, 2)
    weights = [*module.parameters()]
    for layer in layers:
        layer._parameters = Watched(layer._parameters)
    reads: list[str] = []
    graphs: list[Any] = []
    compiled = torch.compile(lambda layer, value: layer(value), backend=count, fullgraph=True)
    expected = [compiled(layer, value) for layer in layers]
    reads.clear()
    with _fresh_leaves(module) as leaves:
        assert not reads and [*module.parameters()] == [*leaves.values()] and leaves.keys() == set(weights)
        assert not any(leaf is weight for weight, leaf in leaves.items())
        assert all(torch.equal(compiled(layer, value), each) for layer, each in zip(layers, expected, strict=True))
        reads.clear()
    assert not reads and len(graphs) == 1
    assert all(map(operator.is_, module.parameters(), weights))


def test_a_pass_that_fails_leaves_nothing_behind(one_of_two):
    module, given = one_of_two
    loss, expected = gradients(module, given)
    shard(module)
    for _ in range(2):
        module.fails_in = summed_loss
        with pytest.raises(torch.OutOfMemoryError):
            module(*given)
        module.fails_in = None
        found_loss, found = gradients(module, given)
        assert found_loss == loss and all(torch.equal(found[name], expected[name]) for name in expected)
        assert not module.whole


def test_what_others_put_in_a_weights_place_is_no_weight(one_of_two):
    """DeepSpeed's own gathering leaves an empty tensor; and where nothing is shared any more, one stays."""
    module, given = one_of_two
    loss, _ = gradients(module, given)
    shard(module)
    for weight in module.parameters():
        weight.data = torch.empty(0)
    assert gradients(module, given)[0] == loss
    module.release()
    assert module.sharded is None and all(weight.numel() == 0 for weight in module.parameters())
