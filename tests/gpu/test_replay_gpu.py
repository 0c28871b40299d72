"""Decoding on CUDA: replayed tokens are those of a cache that grows, whatever other threads do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import hebrew_asr.model.generate as generate_module
from hebrew_asr.model.generate import Decoding, Transcriber
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.replay import ReplayedCall, replayed_decoding
from hebrew_asr.model.tiny import save_tiny
from hebrew_asr.recipe import Model
from tests.support.gpu_task import SPEC
from tests.support.native import sound
from tests.support.tiny_task import WORDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DECODING = Decoding(max_tokens_per_s=6, min_new_tokens=8)


@contextmanager
def allocating() -> Iterator[None]:
    """Another thread that prepares batches on a stream of its own, as training's feed does during an evaluation."""
    stop = threading.Event()

    def allocate() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            held = []
            while not stop.is_set():
                held.append(torch.randn(1 << 20).pin_memory().cuda(non_blocking=True).square())
                held = held[-9:]
            torch.cuda.synchronize()

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_replayed_tokens_are_those_of_a_growing_cache(tmp_path, monkeypatch):
    save_tiny(tmp_path, SPEC, [" ".join(WORDS)], 3)
    asr, tokenizer = load_model(Model(str(tmp_path))).eval(), load_tokenizer(str(tmp_path))
    clips = [sound(seconds, i).astype(np.float32) / 32768 for i, seconds in enumerate((0.3, 1.3, 4.9, 9.0))]
    expected = Transcriber(asr, tokenizer, DECODING)(clips)  # on the CPU, where the cache grows
    transcribe, steps = Transcriber(asr.cuda(), tokenizer, DECODING), []

    @contextmanager
    def watched(asr):
        with replayed_decoding(asr) as step:
            steps.append(step)
            yield step

    monkeypatch.setattr(generate_module, "replayed_decoding", watched)
    with allocating():
        found = [transcribe(clips) for _ in range(3)]
        alone = [transcribe([clip])[0] for clip in clips]
    assert found == [expected] * 3 and alone == expected and any(expected)
    assert steps[0].num_replays > 30, "all but the first two tokens of the longest clip"
    assert "get_compiled_call" not in vars(asr)


def test_what_cannot_be_recorded_still_runs():
    def waits(values: torch.Tensor) -> torch.Tensor:
        return values * values.sum().item()

    call, values = ReplayedCall(waits), torch.arange(4.0, device="cuda")
    assert call(values=values).tolist() == [0, 6, 12, 18]
    with pytest.warns(RuntimeWarning, match="several times slower"):
        assert call(values=values).tolist() == [0, 6, 12, 18]
    assert call(values=values + 1).tolist() == [10, 20, 30, 40] and not call.num_replays
