"""Tokens that do not occur in training: which they are, and that their rows of the tied head stay as they are."""

from __future__ import annotations

import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.collate import Example, pack
from hebrew_asr.model.absent_tokens import AbsentTokens
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.model.phases import set_phase
from hebrew_asr.text.prompt import PromptTokens, build_target, target_ids, vocabulary
from tests.support.native import build, sound

TEXTS = [build_target(text) for text in ("שלום עולם", "ילדה כותבת", "שלום")]
LAYERS = 'unfrozen_layers={"llm_top": 1, "audio_top": 1}'


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


def gradients(asr, tokenizer, frozen: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The head's gradient over the two phases of the recipe, and which tokens occur."""
    recipe = load_recipe("round2", [LAYERS, f"optimizer.absent_tokens={frozen}"])
    present_V = torch.zeros(len(asr.lm_head.weight), dtype=torch.bool)
    present_V[list(vocabulary(tokenizer, TEXTS))] = True
    absent, batch, found = AbsentTokens(asr, present_V, asr.device, frozen=frozen == "frozen"), batch_of(tokenizer), []
    for phase in recipe.phases:
        groups = set_phase(asr, recipe, phase)
        module = PackedASR(asr)
        absent.hold(module)
        assert [group.decays for group in groups if group.module_group == "head"] == [frozen == "trained"]
        for _ in range(2):  # micro-batches add up
            module(batch, LogMel()(batch)).backward()
        found.append(asr.lm_head.weight.grad)
        asr.zero_grad(set_to_none=True)
    return found, present_V


def test_the_gradient_of_absent_rows_is_zero_and_of_others_as_it_was():
    asr, tokenizer = build()
    trained, present_V = gradients(asr, tokenizer, "trained")
    frozen, _ = gradients(asr, tokenizer, "frozen")
    for every_row, some_rows in zip(trained, frozen, strict=True):
        assert every_row[~present_V].any(dim=1).all(), "softmax gives every row a gradient"
        assert not some_rows[~present_V].any()
        torch.testing.assert_close(some_rows[present_V], every_row[present_V])


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
