"""Features are made on CUDA while the step before is running: nothing of that may hold up the step's own launches."""

from __future__ import annotations

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import ROWS_OF_A_PLAN, LogMel
from hebrew_asr.data.collate import pack
from hebrew_asr.text.prompt import PromptTokens
from tests.support.native import build, examples

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_batches_of_all_lengths_share_few_plans_of_cufft():
    """Making one waits for the default stream: `torch.cuda.set_sync_debug_mode` does not see that."""
    _, tokenizer = build()
    clips, prompt = examples(tokenizer), PromptTokens.of(tokenizer)
    batches = [pack(clips[:count], prompt, EncoderGeometry()) for count in range(1, len(clips) + 1)]
    rows = {batch.mel.num_rows for batch in batches}
    assert len(rows) == len(batches)
    on_host, on_device = LogMel(), LogMel().cuda()
    torch.backends.cuda.cufft_plan_cache.clear()
    for batch in batches:
        found = on_device(batch.to("cuda"))
        torch.testing.assert_close(found.cpu(), on_host(batch), atol=1e-4, rtol=0)
    assert torch.backends.cuda.cufft_plan_cache.size == len({-(-count // ROWS_OF_A_PLAN) for count in rows}) < len(rows)
