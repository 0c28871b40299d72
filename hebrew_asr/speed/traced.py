"""Single steps under torch's profiler: what takes the device's time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hebrew_asr.data.loader import StepBatch
from hebrew_asr.training.setup import Run


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network_alone_ms(run: Run, batch: StepBatch, rates: dict[str, float]) -> float:
    """One step, profiled. Kernels of NCCL beside which nothing else runs; on the slowest rank, collective."""
    profiler = _profiled(run, batch, rates, [ProfilerActivity.CUDA])
    return float(run.ranks.max(torch.tensor([alone_us(profiler.events() or (), "nccl") / 1e3])))


def _profiled(run: Run, batch: StepBatch, rates: dict[str, float], activities: list[ProfilerActivity]) -> profile:
    with profile(activities=activities, acc_events=True) as profiler:
        run.engine.step(batch.micro_batches, rates).figures()
        wait(run.ranks.device)
    return profiler


def alone_us(events: Iterable[Any], name: str) -> float:
    """Microseconds in which a device's only activities are such whose name holds ``name``; of a profiler's events."""
    spans = [
        (event.time_range.start, event.time_range.end, name in event.name.lower())
        for event in events
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    ]
    return _covered(span[:2] for span in spans) - _covered(span[:2] for span in spans if not span[2])


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """What is in one of them at least."""
    total, until = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def write_trace(run: Run, batch: StepBatch, rates: dict[str, float], stem: Path) -> None:
    """Profile one step: ``stem.txt`` says what took the device's time, ``stem.json.gz`` opens in a trace viewer."""
    on_cuda = run.ranks.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    profiler = _profiled(run, batch, rates, activities)
    stem.parent.mkdir(parents=True, exist_ok=True)
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    stem.with_suffix(".txt").write_text(table, encoding="utf-8")
    profiler.export_chrome_trace(str(stem.with_suffix(".json.gz")))
