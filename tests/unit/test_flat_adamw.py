"""AdamW on a flat group, as it is compiled for CUDA: torch's fused one, with clipping, skipping and the bf16 copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hebrew_asr.flat.adamw import update

SIZE, BETAS, EPS = 1000, (0.9, 0.98), 1e-6
STEPS = [(0.0, 1.0, False), (1e-2, 1.0, False), (5e-3, 3.0, False), (5e-3, 1.0, True), (1e-2, 1.7, False)]
"""Learning rate, gradient scale, whether the gradients are NaN."""


def by_torch(start: Tensor, gradients: list[Tensor], weight_decay: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The fused AdamW's parameter and state after ``STEPS``."""
    master = start.clone()
    optimizer = torch.optim.AdamW([master], lr=0.0, betas=BETAS, eps=EPS, weight_decay=weight_decay, fused=True)
    for gradient, (rate, scale, is_nan) in zip(gradients, STEPS, strict=True):
        if not is_nan:
            optimizer.param_groups[0]["lr"] = rate
            master.grad = gradient / scale
            optimizer.step()
    return master, optimizer.state[master]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_is_the_fused_adamw(weight_decay: float):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SIZE, generator=generator)
    gradients = [torch.randn(SIZE, generator=generator) for _ in STEPS]
    for gradient in gradients:
        gradient[:10] = 0.0  # rows of the embedding that no token read
    expected, state = by_torch(start, gradients, weight_decay)
    master, weights = start.clone(), torch.empty(SIZE, dtype=torch.bfloat16)
    exp_avg, exp_avg_sq, step = torch.zeros(SIZE), torch.zeros(SIZE), torch.zeros(())
    found = (master, exp_avg, exp_avg_sq, step, weights)
    for gradient, (rate, scale, is_nan) in zip(gradients, STEPS, strict=True):
        before = [part.clone() for part in found]
        values = torch.full_like(gradient, torch.nan) if is_nan else gradient
        scalars = torch.tensor(rate), torch.tensor(scale), torch.tensor(float(is_nan))
        update(master, values, exp_avg, exp_avg_sq, step, weights, *scalars, BETAS, EPS, weight_decay)
        if is_nan:
            assert all(torch.equal(one, other) for one, other in zip(before, found, strict=True))
    torch.testing.assert_close(master, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(exp_avg, state["exp_avg"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(exp_avg_sq, state["exp_avg_sq"], rtol=1e-6, atol=1e-7)
    assert step == state["step"] == len(STEPS) - 1
    assert torch.equal(weights, master.bfloat16())
