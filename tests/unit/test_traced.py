"""What of a step's time is the network's alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hebrew_asr.speed.traced import alone_us

spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), max_size=12)


def event(start: float, lasts: float, name: str, device: DeviceType = DeviceType.CUDA, marks: bool = False):
    span = SimpleNamespace(start=start, end=start + lasts)
    return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=marks)


@given(spans)
def test_it_is_each_microsecond_with_nothing_else_in_it(drawn):
    events = [
        event(start, lasts, "ncclDevKernel_AllGather" if is_network else "gemm") for start, lasts, is_network in drawn
    ]
    held = [
        {place for start, lasts, which in drawn if which is kind for place in range(start, start + lasts)}
        for kind in (True, False)
    ]
    assert alone_us(events, "nccl") == len(held[0] - held[1])


def test_what_the_host_does_and_marks_on_the_device_hide_nothing():
    kernel = event(0, 10, "ncclDevKernel_AllGather")
    assert alone_us([kernel, event(0, 10, "step", DeviceType.CPU), event(0, 10, "graph", marks=True)], "nccl") == 10


def test_events_of_the_profiler_have_what_is_read():
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(3).sum()
    assert alone_us(profiler.events(), "nccl") == pytest.approx(0.0), "none of them is a device's"
