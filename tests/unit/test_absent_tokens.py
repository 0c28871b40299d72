"""Tokens that do not occur in training: which they are, and that their rows of the tied head stay as they are."""

from __future__ import annotations

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.collate import Example, pack
from hebrew_asr.model.phases import set_phase
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.compiled import CompiledParts
from hebrew_asr.passes.packed import PackedASR, embed, summed_loss
from hebrew_asr.text.prompt import PromptTokens, build_target, target_ids, vocabulary
from tests.support.native import build, sound

TEXTS = [build_target(text) for text in ("שלום עולם", "ילדה כותבת", "שלום")]
LAYERS = 'unfrozen_layers={"llm_top": 1, "audio_top": 1}'


class PartlyCompiled(PackedASR):
    """What reads the head is compiled, as on CUDA all is."""

    def __init__(self, asr):
        super().__init__(asr)
        self.parts = CompiledParts()

    def run(self, part, module, *inputs):
        return self.parts(part, module, *inputs) if part in (embed, summed_loss) else part(module, *inputs)


def batch_of(tokenizer):
    examples = [Example(text, sound(0.5, seed), target_ids(tokenizer, text)) for seed, text in enumerate(TEXTS)]
    return pack(examples, PromptTokens.of(tokenizer), EncoderGeometry())


def test_the_vocabulary_is_what_batches_hold():
    """Every id that is read or written in training, and nothing else."""
    _, tokenizer = build()
    batch = batch_of(tokenizer)
    assert vocabulary(tokenizer, TEXTS) == {*batch.input_ids_T.tolist(), *batch.labels_L.tolist()}
    assert vocabulary(tokenizer, TEXTS * 20_000) == vocabulary(tokenizer, reversed(TEXTS))
    shares = [vocabulary(tokenizer, TEXTS[rank::2]) for rank in range(2)]
    assert shares[0] | shares[1] == vocabulary(tokenizer, TEXTS)


def present_tokens(asr, tokenizer) -> torch.Tensor:
    """(V,) bool. One token that is read is none of them, and the one that embeddings give no gradient is."""
    present_V = torch.zeros(len(asr.lm_head.weight), dtype=torch.bool)
    present_V[[*vocabulary(tokenizer, TEXTS), tokenizer.pad_token_id]] = True
    present_V[batch_of(tokenizer).input_ids_T[0]] = False
    return present_V


def gradients(asr, tokenizer, frozen: str, module: PackedASR) -> list[dict[str, torch.Tensor]]:
    """Of what trains, in the two phases of the recipe."""
    recipe = load_recipe("round2", [LAYERS, f"optimizer.absent_tokens={frozen}"])
    absent = AbsentTokens(asr, present_tokens(asr, tokenizer), asr.device, frozen=frozen == "frozen")
    batch, found = batch_of(tokenizer), []
    batch.input_ids_T[1] = tokenizer.pad_token_id
    for phase in recipe.phases:
        groups = set_phase(asr, recipe, phase)
        absent.hold(module)
        assert [group.decays for group in groups if group.module_group == "head"] == [frozen == "trained"]
        for _ in range(2):  # micro-batches add up
            module(batch, LogMel()(batch)).backward()
        found.append({name: weight.grad for name, weight in asr.named_parameters() if weight.grad is not None})
        asr.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", [PackedASR, PartlyCompiled])
def test_the_gradient_of_absent_rows_is_zero_and_of_others_as_it_was(kind):
    """In the head, which is the embedding too; below it nothing changes."""
    asr, tokenizer = build()
    module = kind(asr)
    trained = gradients(asr, tokenizer, "trained", PackedASR(asr))
    frozen = gradients(asr, tokenizer, "frozen", module)
    assert not isinstance(module, PartlyCompiled) or module.parts.is_compiled
    present_V = present_tokens(asr, tokenizer)
    (head,) = [name for name, weight in asr.named_parameters() if weight is asr.lm_head.weight]
    assert asr.model.language_model.embed_tokens.padding_idx == tokenizer.pad_token_id
    for every_row, some_rows in zip(trained, frozen, strict=True):
        assert every_row[head][~present_V].any(dim=1).all(), "softmax gives every row a gradient"
        assert not some_rows[head][~present_V].any()
        every_row[head][~present_V] = 0.0
        # Compiled parts add up in another order, and rows of the opening have the gradients of all clips.
        torch.testing.assert_close(some_rows, every_row, rtol=1e-5, atol=3e-5)


def test_all_rows_train_where_the_recipe_says_so_and_none_where_the_head_is_frozen():
    asr, tokenizer = build()
    module, present_V = PackedASR(asr), present_tokens(asr, tokenizer)
    frozen, trained = (AbsentTokens(asr, present_V, asr.device, frozen=frozen) for frozen in (True, False))
    frozen.hold(module)
    assert module.live is not None
    assert torch.equal(module.kept_rows[asr.lm_head.weight], ~present_V[:, None])
    trained.hold(module)
    assert module.live is None and not module.kept_rows
    asr.requires_grad_(False)
    frozen.hold(module)
    assert module.live is None and not module.kept_rows


def test_row_norms_are_means_of_present_and_of_absent_rows():
    asr, _ = build()
    weight = torch.zeros_like(asr.lm_head.weight)
    weight[:2, 0], weight[2:, 1] = 3.0, 4.0
    present_V = torch.arange(len(weight)) < 4
    absent = AbsentTokens(asr, present_V, asr.device, frozen=True)
    assert absent.row_norms(weight) == {"present": 3.5, "absent": 4.0}
    assert absent.row_norms(weight.bfloat16()) == {"present": 3.5, "absent": 4.0}
    everything = AbsentTokens(asr, torch.ones_like(present_V), asr.device, frozen=True)
    assert everything.row_norms(weight)["absent"] is None
