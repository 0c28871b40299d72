"""Runs on the ranks of a test: what DeepSpeed's optimizer really holds, beside what the plan says it holds.

arguments: TASK OUT '[{"stage": 2, "bf16": true, "offload": false}, …]'
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.engine import dist
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.phases import shapes_of
from hebrew_asr.planning.zero_memory import sizes_of, zero_memory
from tests.support.engine_worker import RATES, profile, set_up, task_recipe

SMALL_BUCKET = {"reduce_bucket_size": 4096, "overlap_comm": False}
"""So that one parameter is larger."""


def held_by(optimizer: Any, weights: set[int]) -> int:
    """Bytes of the tensors that can be reached from ``optimizer``, without those of the model's weights."""
    seen, waiting, storages = {id(optimizer)}, [optimizer], {}
    while waiting:
        for item in gc.get_referents(waiting.pop()):
            if id(item) in seen or isinstance(item, type | torch.nn.Module) or callable(item):
                continue
            seen.add(id(item))
            if isinstance(item, torch.Tensor):
                for tensor in (item, item.grad if item.is_leaf else None):
                    if tensor is not None and not tensor.is_meta and tensor.untyped_storage()._cdata not in weights:
                        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            elif isinstance(item, dict | list | tuple | set) or hasattr(item, "__dict__"):
                waiting.append(item)
    return sum(storages.values())


def measure(task: Path, ranks: dist.Ranks, spec: dict) -> dict:
    """Two steps; what is held when the second one's backward is over, and after it."""
    zero = profile(spec["stage"], spec["bf16"], 8, spec.get("offload", False), **SMALL_BUCKET)
    change = f"optimizer.absent_tokens={'frozen' if spec.get('rows_stay') else 'trained'}"
    recipe = task_recipe(task, change)
    given = set_up(task, ranks, zero, change)
    asr, engine = given.asr, given.engine
    shapes = shapes_of(asr)
    sizes = sizes_of(shapes, phase_groups(shapes, recipe, recipe.phases[0]))
    expected = zero_memory(zero, sizes, ranks.size, len(given.micro_batches(0)))
    engine.enter_phase(0)
    found: dict[str, int] = {}

    def weights() -> set[int]:
        kept = [getattr(p, "ds_tensor", p) for p in asr.parameters()]
        return {p.untyped_storage()._cdata for p in [*asr.parameters(), *kept]}

    @contextmanager
    def look(part: str) -> Iterator[None]:
        if part == "step":
            gc.collect()
            found["before step"] = held_by(engine._engine.optimizer, weights())
        yield

    for step in range(2):
        micro_batches = given.micro_batches(step)
        with engine.timed(look):
            engine.step(micro_batches, RATES)
    gc.collect()
    found["after step"] = held_by(engine._engine.optimizer, weights())
    engine.close()
    return {"found": found, "expected": asdict(expected), "spec": spec, "num_ranks": ranks.size}


def main(arguments: list[str]) -> int:
    task, out, specs = Path(arguments[0]), Path(arguments[1]), json.loads(arguments[2])
    ranks = dist.start("cpu")
    rows = [measure(task, ranks, spec) for spec in specs]
    if ranks.is_main:
        out.write_text(json.dumps(rows))
    dist.stop()
    return 0
