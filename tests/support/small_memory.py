"""Device memory that runs out, on a CPU: training passes over more clips than fit raise what CUDA raises."""

from __future__ import annotations

from typing import Any

import torch

from hebrew_asr.model.packed import PackedASR


def run_short(shortages: list[dict[str, Any]]) -> None:
    """From now on in this process, fail like CUDA.

    Each shortage is ``{"part": "forward" | "backward", "after": N, "fits": N}``: passes after the first N over more
    clips than fit fail, in the middle of that part.
    """
    if not shortages:
        return
    hidden_states, passes = PackedASR.hidden_states, 0

    def short(self: PackedASR, batch: Any, mel_CBF: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        hidden_LH = hidden_states(self, batch, mel_CBF)
        for shortage in shortages:
            if passes > shortage["after"] and len(batch.clip_ids) > shortage["fits"]:
                if shortage["part"] == "forward":
                    _fail(hidden_LH)
                hidden_LH.register_hook(_fail)
        return hidden_LH

    PackedASR.hidden_states = short  # type: ignore[method-assign]


def _fail(_: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd a second line.")
