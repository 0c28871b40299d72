"""Decoding on CUDA: replayed tokens are those of a cache that grows, whatever other threads do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import hebrew_asr.inference.transcriber as generate_module
from hebrew_asr import fallbacks
from hebrew_asr.config.recipe import Model
from hebrew_asr.demo.tiny import save_tiny
from hebrew_asr.inference.replay import ReplayedCall, replayed_decoding
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.model.load import load_model, load_tokenizer
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


def waits(values: torch.Tensor) -> torch.Tensor:
    return values * torch.nn.functional.dropout(torch.ones_like(values), 0.0) * values.sum().item()


def test_what_cannot_be_recorded_still_runs(monkeypatch):
    monkeypatch.setattr(fallbacks, "_noted", {})  # another test may have met the same failure, which is kept once
    call, values = ReplayedCall(waits), torch.arange(4.0, device="cuda")
    assert call(values=values).tolist() == [0, 6, 12, 18]
    with pytest.warns(RuntimeWarning, match="several times slower"):
        assert call(values=values).tolist() == [0, 6, 12, 18]
    assert call(values=values + 1).tolist() == [10, 20, 30, 40] and not call.num_replays
    (noted,) = fallbacks.take_fallbacks()
    assert "several times slower" in noted.name and "Error" in noted.reason


def draws_and_waits(values: torch.Tensor) -> torch.Tensor:
    return (values + torch.randn_like(values)) * values.sum().item()


@pytest.mark.parametrize("forward", [waits, draws_and_waits])
def test_a_failed_recording_leaves_nothing_behind(forward):
    """Random numbers, the current stream, memory and later recordings are as if it had never been tried."""
    values, stream = torch.ones(4, device="cuda"), torch.cuda.current_stream()
    call = ReplayedCall(forward)
    call(values=values)
    torch.cuda.manual_seed(7)
    expected = [torch.randn(5, device="cuda").tolist() for _ in range(2)]
    torch.cuda.manual_seed(7)
    first = torch.randn(5, device="cuda").tolist()
    with pytest.warns(RuntimeWarning, match="several times slower"):
        call(values=values)
    assert torch.cuda.current_stream() == stream
    after = torch.randn(5, device="cuda").tolist()
    if forward is waits:
        assert [first, after] == expected, "a recording that drew nothing does not change what is drawn next"
    torch.cuda.manual_seed(7)
    assert torch.randn(5, device="cuda").tolist() == first == expected[0]
    assert torch.nn.functional.dropout(torch.ones(1000, device="cuda")).eq(0).any()
    before = torch.cuda.memory_reserved()
    held = torch.empty(1 << 28, device="cuda")
    assert torch.cuda.memory_reserved() > before
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before, "memory goes back to the device"
    good = ReplayedCall(lambda values: values + torch.rand_like(values))
    drawn = [good(values=values).tolist() for _ in range(4)]
    assert good.num_replays == 3 and len({str(row) for row in drawn}) == 4, "each replay draws anew"


def test_an_error_of_the_forward_itself_is_raised():
    def fails(values: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise TypeError("a bug")
        return values

    call, values = ReplayedCall(fails), torch.ones(4, device="cuda")
    call(values=values)
    with pytest.raises(TypeError, match="a bug"):
        call(values=values)
    assert len(torch.randn(5, device="cuda").tolist()) == 5
