"""Whose fault it is that an engine cannot be built."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.distributed import DistNetworkError

from hebrew_asr.engine import zero
from hebrew_asr.engine.engine import TrainEngine
from hebrew_asr.errors import UsageError


@pytest.mark.parametrize(
    ("raised", "is_of_the_profile"),
    [
        (AssertionError("no such stage"), True),
        (NotImplementedError("legacy"), True),
        (torch.OutOfMemoryError("2 GiB"), False),
        (DistNetworkError("refused"), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_lost_rank_or_a_full_device_is_no_fault_of_the_profile(monkeypatch, raised, is_of_the_profile):
    def build(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(zero, "build", build)
    with pytest.raises(UsageError if is_of_the_profile else type(raised)):
        TrainEngine._assemble(MagicMock(), [], None)
