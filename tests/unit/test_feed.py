"""Steps reach the engine in order, with features, and an error surfaces at its own step."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data._utils import pin_memory

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import pack
from hebrew_asr.data.loader import MicroBatch, StepBatch
from hebrew_asr.errors import DataError
from hebrew_asr.text.prompt import PromptTokens
from hebrew_asr.training.feed import feed
from hebrew_asr.training.loading import load_steps
from tests.support.native import build, examples

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def steps(count: int, *, fail_at: int | None = None) -> Iterator[StepBatch]:
    _, tokenizer = build()
    clips, prompt = examples(tokenizer), PromptTokens.of(tokenizer)
    for step in range(count):
        if step == fail_at:
            raise DataError(f"step {step} is broken")
        packed = [pack(clips[step : step + size], prompt, EncoderGeometry()) for size in (1, 2)]
        yield StepBatch(step, [MicroBatch(batch, batch.num_labels) for batch in packed])


@pytest.mark.parametrize("device", DEVICES)
def test_steps_come_in_order_with_features(device: str):
    expected, log_mel = list(steps(4)), LogMel()
    seen = list(feed(steps(4), LogMel().to(device), torch.device(device)))
    assert [fed.step for fed in seen] == [0, 1, 2, 3]
    for fed, loaded in zip(seen, expected, strict=True):
        assert fed.wait_s >= 0
        assert [micro.num_labels for micro in fed.micro_batches] == [micro.num_labels for micro in loaded.micro_batches]
        for micro, own in zip(fed.micro_batches, loaded.micro_batches, strict=True):
            packed, mel_CBF = micro.packed, micro.mel_CBF
            assert packed.clip_ids == own.packed.clip_ids and packed.input_ids_T.device.type == device
            assert torch.allclose(mel_CBF.cpu(), log_mel(own.packed), atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_an_error_surfaces_at_its_step(device: str):
    seen = feed(steps(4, fail_at=2), LogMel().to(device), torch.device(device))
    assert [next(seen).step, next(seen).step] == [0, 1]
    with pytest.raises(DataError, match="step 2 is broken"):
        next(seen)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_can_stop_in_the_middle(device: str):
    seen = feed(steps(4), LogMel().to(device), torch.device(device))
    assert next(seen).step == 0
    seen.close()
    assert next(seen, None) is None


def test_workers_that_are_killed_leave_no_traceback(monkeypatch, capsys):
    """What torch's thread for pinned memory was receiving from them is cut off; every other failure is still told."""
    assert pin_memory._pin_memory_loop.__name__ == "_pin_memory_loop"  # which names the thread
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    load_steps([], 0, 0, workers=0, pin_memory=False)

    def fail(error: Exception) -> None:
        raise error

    def _pin_memory_loop(error: Exception) -> None:
        raise error

    for target, error in (
        (_pin_memory_loop, ConnectionResetError("reset by peer")),
        (_pin_memory_loop, ValueError("of its own")),
        (fail, ConnectionResetError("of another")),
    ):
        thread = threading.Thread(target=target, args=(error,))
        thread.start()
        thread.join()
    told = capsys.readouterr().err
    assert "reset by peer" not in told and "of its own" in told and "of another" in told
