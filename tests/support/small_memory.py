"""Device memory that runs out, on a CPU: training passes over more clips than fit raise what CUDA raises."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from hebrew_asr.flat.zero2 import FlatZeRO2
from hebrew_asr.passes.packed import PackedASR


def run_short(shortages: list[dict[str, Any]]) -> None:
    """From now on in this process, fail like CUDA.

    Each shortage is ``{"part": "forward" | "backward" | "reduction", "after": N, "fits": N}``: passes after the first
    N over more clips than fit fail, in the middle of that part. Reduction is what runs in methods of the optimizer
    during a backward pass, under ZeRO-2: DeepSpeed's reduces there, ours takes the memory to reduce in.
    """
    if not shortages:
        return
    hidden_states, passes, reductions_fail = PackedASR.hidden_states, 0, False
    reduce = DeepSpeedZeroOptimizer.process_gradients
    prepare = FlatZeRO2.overlapping_partition_gradients_reduce_epilogue

    def short(self: PackedASR, batch: Any, mel_CBF: torch.Tensor) -> torch.Tensor:
        nonlocal passes, reductions_fail
        passes, reductions_fail = passes + 1, False
        hidden_LH = hidden_states(self, batch, mel_CBF)
        for shortage in shortages:
            if passes > shortage["after"] and len(batch.clip_ids) > shortage["fits"]:
                if shortage["part"] == "forward":
                    _fail(hidden_LH)
                if shortage["part"] == "backward":
                    hidden_LH.register_hook(_fail)
                reductions_fail |= shortage["part"] == "reduction"
        return hidden_LH

    def reduce_short(self: DeepSpeedZeroOptimizer, parameter: torch.Tensor, group: int) -> None:
        if reductions_fail:
            _fail(parameter)
        reduce(self, parameter, group)

    def prepare_short(self: FlatZeRO2) -> None:
        if reductions_fail:
            _fail(self._masters()[0])
        prepare(self)

    PackedASR.hidden_states = short  # type: ignore[method-assign]
    FlatZeRO2.overlapping_partition_gradients_reduce_epilogue = prepare_short  # type: ignore[method-assign]
    DeepSpeedZeroOptimizer.process_gradients = reduce_short


def _fail(_: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd a second line.")
