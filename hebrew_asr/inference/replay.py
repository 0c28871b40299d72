"""Decoding without launching kernels one by one: a token is some 1,500 of them, and the device waits for the host.

``generate`` asks ``get_compiled_call`` for the forward pass of single tokens when its cache is static. Compiling that
would take longer than an evaluation; recording it as a CUDA graph takes as long as one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.passes.recorded import recording


@contextmanager
def replayed_decoding(asr: Any) -> Iterator[ReplayedCall]:
    """Within this, one call of ``asr.generate`` with a ``StaticCache`` replays all tokens but its first ones."""
    step = ReplayedCall(asr)
    asr.get_compiled_call = lambda _: step
    try:
        yield step
    finally:
        del asr.get_compiled_call


class ReplayedCall:
    """A forward pass that runs as it is once, is recorded in the second call, and is replayed from then on.

    Tensors among the arguments may change, but not their shapes; everything else must be the same in every call.
    What it returns is overwritten by the next call.
    """

    def __init__(self, forward: Callable[..., Any]):
        """``forward`` takes keyword arguments and never waits for the device."""
        self._forward = forward
        self._is_warm = self._is_given_up = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: dict[str, Any] = {}
        self._returned: Any = None
        self.num_replays = 0

    def __call__(self, **inputs: Any) -> Any:
        """What ``forward`` returns for these inputs."""
        if self._is_warm and self._graph is None and not self._is_given_up:
            self._record(inputs)
        self._is_warm = True  # libraries have set up what may not be set up while recording
        if self._graph is None:
            return self._forward(**inputs)
        _overwrite(self._held, inputs)
        self._graph.replay()
        self.num_replays += 1
        return self._returned

    def _record(self, inputs: dict[str, Any]) -> None:
        held = _copied(inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with recording(graph, torch.cuda.graph_pool_handle()):
                returned = self._forward(**held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_given_up = True
            note_fallback("decoding launches every kernel of a token anew, several times slower than a replay", error)
            return
        self._graph, self._held, self._returned = graph, held, returned


def _copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, with tensors of their own; masks come in a dict, by kind of layer."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else _copied(value) if type(value) is dict else value
        for name, value in inputs.items()
    }


def _overwrite(held: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Give what :func:`_copied` made the values of another call."""
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            value.copy_(inputs[name])
        elif type(value) is dict:
            _overwrite(value, inputs[name])
        else:
            assert value is inputs[name] or value == inputs[name], f"{name} is recorded as it was"
