"""Attention without its kernels: a machine without a C compiler trains all the same, and says that it is slower."""

from __future__ import annotations

import pytest
import torch

from hebrew_asr.fallbacks import take_fallbacks
from hebrew_asr.passes.attention import _can_build_kernels, _has_kernels

pytestmark = pytest.mark.filterwarnings("ignore:attention runs clip by clip")


def test_kernels_that_cannot_be_built_are_a_recorded_fault(monkeypatch):
    runtime = pytest.importorskip("triton.runtime", reason="torch for CUDA brings it")

    class Driver:
        @property
        def active(self) -> object:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(runtime, "driver", Driver())
    take_fallbacks()
    _can_build_kernels.cache_clear()
    assert not _can_build_kernels() and not _can_build_kernels()
    (told,) = take_fallbacks()
    assert "clip by clip" in str(told) and "C compiler" in str(told)
    _can_build_kernels.cache_clear()


def test_whether_they_can_is_no_part_of_a_graph():
    """A graph break here would leave the whole step uncompiled."""
    take_fallbacks()
    doubled = torch.compile(lambda values: values * (2 if _has_kernels() else 3), fullgraph=True, backend="eager")
    assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0 if _can_build_kernels() else 3.0))
    take_fallbacks()
