"""What several unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as torch_dist

from hebrew_asr.engine.dist import Ranks


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """A real group of one."""
    torch_dist.init_process_group("gloo", store=torch_dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"), torch_dist.group.WORLD)
    torch_dist.destroy_process_group()
