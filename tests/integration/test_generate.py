"""The one decode path: equal to the native processor's own, whatever the batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

import hebrew_asr.inference.transcriber as module
from hebrew_asr.audio.segment import in_halves
from hebrew_asr.config.recipe import Model
from hebrew_asr.data.collate import pack
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.text.prompt import text_of
from tests.support.native import sound
from tests.support.tiny_task import SPEC, WORDS

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from hebrew_asr.demo.tiny import save_tiny

    path = tmp_path_factory.mktemp("model")
    save_tiny(path, SPEC, [" ".join(WORDS)], 3)
    return path


@pytest.fixture(scope="module")
def clips():
    return [sound(seconds, i).astype(np.float32) / 32768 for i, seconds in enumerate((0.3, 1.3, 4.9, 9.0))]


def test_batch_mates_change_nothing(folder, clips):
    transcribe = Transcriber(load_model(Model(str(folder))).eval(), load_tokenizer(str(folder)))
    together = transcribe(clips)
    assert together == [transcribe([clip])[0] for clip in clips]
    assert any(together)


def test_the_encoder_reads_clips_in_parts_and_changes_nothing(folder, clips, monkeypatch):
    transcribe, sizes = Transcriber(load_model(Model(str(folder))).eval(), load_tokenizer(str(folder))), []
    whole, tokens = transcribe._audio_embeddings(clips)
    monkeypatch.setattr(module, "pack", lambda examples, *rest: sizes.append(len(examples)) or pack(examples, *rest))
    monkeypatch.setattr(module, "_ENCODED_CHUNKS", 7)  # clips of 1, 2, 5 and 9 chunks: one of them is more than a part
    in_parts, tokens_of_parts = transcribe._audio_embeddings(clips)
    assert sizes == [2, 1, 1] and tokens_of_parts == tokens
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-6)


def test_equals_the_native_processor_and_generate(folder, clips, monkeypatch):
    """Prompt, features and decoding of transformers' own pieces, one clip at a time. Tokens are compared: most of those
    that these weights choose are no text.
    """
    decoded, heard = [], Transcriber._heard
    monkeypatch.setattr(Transcriber, "_heard", lambda self, ids: decoded.append(ids) or heard(self, ids))
    asr, tokenizer = load_model(Model(str(folder))).eval(), load_tokenizer(str(folder))
    ours = Transcriber(asr, tokenizer, Decoding(max_tokens_per_s=0, min_new_tokens=12))
    processor = AutoProcessor.from_pretrained(folder)
    conversation = [{"role": "user", "content": [{"type": "audio"}]}]
    prefix = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    for clip in clips:
        inputs = processor(text=[prefix + "language Hebrew<asr_text>"], audio=[clip])
        inputs = inputs.to(asr.device) if hasattr(inputs, "to") else inputs
        with torch.inference_mode():
            out = asr.generate(
                **inputs, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>")
            )
        native = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert ours([clip]) == [text_of(tokenizer.decode(native, skip_special_tokens=True))]
        assert decoded.pop() == native


def test_cap_follows_the_clip_not_the_batch(folder, clips):
    decoding = Decoding(max_tokens_per_s=2, min_new_tokens=3)
    assert decoding.cap(len(clips[0])) == 3
    transcribe = Transcriber(load_model(Model(str(folder))).eval(), load_tokenizer(str(folder)), decoding)
    assert transcribe(clips)[0] == transcribe(clips[:1])[0]


@pytest.mark.parametrize("amid", ["", "language Hebrew<asr_text>", "language<asr_text>", "<asr_text> </think>"])
def test_what_the_model_writes_is_one_line_of_text(folder, amid):
    tokenizer = load_tokenizer(str(folder))
    transcriber = Transcriber(load_model(Model(str(folder))), tokenizer)
    assert tokenizer.decode(transcriber.tokens(f"{WORDS[0]}, {WORDS[1]}")) == f"{WORDS[0]}, {WORDS[1]}"
    ids = tokenizer(f"\n שלום\n\n1\u2028 {amid}עולם\r\n", add_special_tokens=False)["input_ids"]
    heard = transcriber._heard([*ids, tokenizer.convert_tokens_to_ids("<|im_end|>"), *ids])
    assert (heard.text, heard.is_cut) == ("שלום 1 עולם", False)


def test_clips_that_fill_the_memory_are_decoded_fewer_at_once(folder, clips, monkeypatch):
    asr, tried = load_model(Model(str(folder))).eval(), []
    transcribe = Transcriber(asr, load_tokenizer(str(folder)))
    expected, generate = transcribe(clips * 2), asr.generate

    def short(*, input_ids, **options):
        tried.append(len(input_ids))
        if len(input_ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(asr, "generate", short)
    fits = 3
    with pytest.warns(RuntimeWarning, match=r"at most \d clips are decoded together, for want of memory: OutOfMem"):
        assert transcribe(clips * 2) == expected
    assert tried == [8, 4, 2, 2, 2, 2]
    assert transcribe(clips * 2) == expected and tried[6:] == [2] * 4, "it does not try in vain again"
    fits = 0
    with (
        pytest.warns(RuntimeWarning, match="at most 1 clips"),
        pytest.raises(EnvironmentProblem, match=r"does not suffice to decode 0\.3 s of sound .CUDA out of memory"),
    ):
        transcribe(clips)


@pytest.mark.parametrize("count", [0, 1, 300, 1_030, 1_100, 16_000 * 30])
def test_a_piece_is_cut_at_its_pause_and_loses_nothing(count):
    recording = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    pause = slice(round(0.55 * count), round(0.57 * count))
    recording[pause] = 0
    halves = in_halves(recording)
    assert np.array_equal(np.concatenate(halves), recording)
    assert len(halves) == 1 + (count > 1_070) and all(len(half) >= 0.35 * count for half in halves)
    assert count < 16_000 or pause.start <= len(halves[0]) <= pause.stop
