"""Rows of the tied head whose tokens do not occur in training: kept as they are, and measured.

Softmax gives every row of the head a gradient at every step, and AdamW makes a full-size step of whatever lies above
its ``eps``. So a head that trains moves the rows of other languages and rare words too, which are also what sixteen
frozen layers of Qwen3-ASR read. A pass that gives them a gradient of 0 (``live_tokens.py``) is exact on every ZeRO
stage: no optimizer, reduction or clipping sees another, and AdamW leaves a weight of zero gradient, zero moments and no
weight decay bit-equal (:func:`hebrew_asr.model.phases.set_phase` gives the head none).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebrew_asr.passes.live_tokens import LiveTokens
from hebrew_asr.passes.packed import PackedASR


class AbsentTokens:
    """What a native model's head holds beyond the training vocabulary."""

    def __init__(self, asr: Any, present_V: Tensor, device: torch.device, *, frozen: bool):
        """``present_V``: (rows of the head,) bool in host memory, whether a token occurs in training.

        ``device``: where the head trains. ``frozen``: whether the rows of other tokens are kept as they are.
        """
        weight = asr.lm_head.weight
        rows = getattr(weight, "ds_shape", weight.shape)[0]
        assert present_V.shape == (rows,), f"{tuple(present_V.shape)} tokens, the head has {rows} rows"
        self._present_V, self._weight = present_V, weight
        padding_id = asr.model.language_model.embed_tokens.padding_idx
        self._live = LiveTokens.of(present_V, padding_id, device) if frozen else None

    def hold(self, module: PackedASR) -> None:
        """Keep the rows from here on, if they are to be kept and the head trains; anew after each change of phase.

        ``module``: whose passes make the gradients.
        """
        module.live = self._live if self._weight.requires_grad else None

    def row_norms(self, weight_VH: Tensor) -> dict[str, float | None]:
        """Mean L2 norm of the rows of ``present`` and of ``absent`` tokens; None of no rows."""
        norms_V = torch.linalg.vector_norm(weight_VH.detach(), dim=1, dtype=torch.float32).cpu()
        parts = {"present": norms_V[self._present_V], "absent": norms_V[~self._present_V]}
        return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}
