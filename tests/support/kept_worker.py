"""Runs on two ranks of a test: weights are put back, and one that a trial should have left alone has changed on one."""

from __future__ import annotations

import torch
from torch import nn

from hebrew_asr.engine import dist
from hebrew_asr.engine.kept_weights import KeptWeights
from hebrew_asr.errors import TrainingFault


def main(_: list[str] | None = None) -> int:
    ranks = dist.start("cpu")
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, -0.0, 1e-45], [float("inf"), 0.1, -3.0]]))
        model.bias.zero_()
    before = model.weight.detach().clone()
    kept = KeptWeights(model, {"weight"}, ranks)
    with torch.no_grad():
        model.weight.fill_(ranks.rank + 1)
        model.bias[1] += float(ranks.rank)
    told = None
    try:
        kept.put_back()
    except TrainingFault as fault:
        told = fault
    assert told is not None and told.is_common and "bias" in str(told) and "weight," not in str(told), told
    assert torch.equal(model.weight.view(torch.int32), before.view(torch.int32)), "to the bit, the sign of zeros too"
    dist.stop()
    return 0
