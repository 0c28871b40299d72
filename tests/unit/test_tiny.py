"""The tiny model: same architecture and prompt as the real one, loadable by transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen3ASRForConditionalGeneration

from hebrew_asr.demo.tiny import TinySpec, build_tiny, save_tiny
from hebrew_asr.text.prompt import ASR_TEXT, PromptTokens, build_target, parse_target, target_ids

TRANSCRIPTS = ["הילד אוכל תפוח", "הילדה קוראת ספר חדש", "שלום"] * 3
SMALL = TinySpec(
    d_model=32, encoder_layers=2, encoder_ffn_dim=64, downsample_hidden_size=4, hidden_size=32, head_dim=8,
    num_hidden_layers=2, intermediate_size=64,
)  # fmt: skip
REAL = Path(__file__).parents[3] / "shared" / "qwen3_asr_1.7b"


@pytest.fixture(scope="module")
def built():
    return build_tiny(SMALL, TRANSCRIPTS, 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, SMALL, TRANSCRIPTS, 0)
    return folder


def test_directory_loads_with_nothing_missing_and_equal_weights(built, saved):
    loaded, info = Qwen3ASRForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in built[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert loaded.config.text_config.tie_word_embeddings and loaded.config.tie_word_embeddings
    assert loaded.generation_config.pad_token_id != built[1].eos_token_id


def test_weights_depend_on_the_seed_alone(built):
    before = torch.random.get_rng_state()
    again, other = build_tiny(SMALL, TRANSCRIPTS, 0)[0], build_tiny(SMALL, TRANSCRIPTS, 1)[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in built[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    name = "model.audio_tower.conv2d1.weight"
    assert not torch.equal(other.state_dict()[name], built[0].state_dict()[name])


def test_tokenizer_round_trips_and_keeps_the_asr_marker(built, saved):
    for tokenizer in (built[1], AutoTokenizer.from_pretrained(saved)):
        target = build_target("הילד אוכל תפוח")
        ids = target_ids(tokenizer, target)
        assert tokenizer.decode(ids, skip_special_tokens=True) == target
        assert parse_target(tokenizer.decode(ids, skip_special_tokens=True)) == ("Hebrew", "הילד אוכל תפוח")
        assert tokenizer.pad_token_id != tokenizer.eos_token_id == ids[-1]
        assert tokenizer.convert_tokens_to_ids(ASR_TEXT) not in tokenizer.all_special_ids
        unseen = "גשם, 3!"
        assert tokenizer.decode(tokenizer(unseen)["input_ids"]) == unseen


def test_words_of_the_transcripts_are_single_tokens(built):
    assert len(built[1]("הילדה קוראת ספר חדש")["input_ids"]) == 4
    coarse = build_tiny(TinySpec(vocabulary=260), TRANSCRIPTS, 0)[1]
    assert len(coarse("הילדה קוראת ספר חדש")["input_ids"]) > 8


def test_sound_reaches_the_encoder(built):
    """The random stem must not drown the sound in the position embedding: other clips give clearly other features."""
    tower = built[0].model.audio_tower
    seen = []
    hook = tower.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mel = torch.randn(2, 1, 128, 100, generator=torch.Generator().manual_seed(0)) * 0.45
    with torch.no_grad():
        for one in mel:
            tower(one, torch.ones(1, 100, dtype=torch.long))
    hook.remove()
    assert (seen[0] - seen[1]).std() > 0.3 * tower.positional_embedding.positional_embedding.std()


def test_processor_renders_the_prompt_of_training(saved):
    """The chat template and ``text/prompt.py`` are two writers of one form; generation runs from either."""
    processor = AutoProcessor.from_pretrained(saved)
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    request = processor.apply_transcription_request(audio=[samples])
    audio_tokens = int((request["input_ids"] == processor.audio_token_id).sum())
    assert audio_tokens == 13
    assert request["input_ids"][0].tolist() == PromptTokens.of(processor.tokenizer).prompt(audio_tokens)
    asr = Qwen3ASRForConditionalGeneration.from_pretrained(saved)
    answer = asr.generate(**request, max_new_tokens=3)
    assert answer.shape[1] <= request["input_ids"].shape[1] + 3


def test_template_with_context_and_answer(saved):
    tokenizer = AutoProcessor.from_pretrained(saved)
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "הקשר"}]},
        {"role": "user", "content": [{"type": "audio", "path": "x.wav"}, {"type": "text", "text": "dropped"}]},
        {"role": "assistant", "content": "language Hebrew<asr_text>שלום"},
    ]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nהקשר<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
        "<|im_start|>assistant\nlanguage Hebrew<asr_text>שלום<|im_end|>\n"
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the public checkpoint's tokenizer files are not here")
def test_prompt_has_the_tokens_of_the_public_checkpoint(built):
    """Same special tokens in the same places, whatever their ids."""
    real = AutoTokenizer.from_pretrained(REAL)
    tiny = built[1]
    prompts = [t.convert_ids_to_tokens(PromptTokens.of(t).prompt(2)) for t in (real, tiny)]
    assert prompts[0] == prompts[1]
    for token in tiny.get_added_vocab():
        assert token in real.get_added_vocab()
        special = [t.added_tokens_decoder[t.convert_tokens_to_ids(token)].special for t in (real, tiny)]
        assert special[0] == special[1], token
