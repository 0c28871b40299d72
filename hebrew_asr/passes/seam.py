"""Where a pass is cut in two, so that neither the reduction of gradients nor the optimizer has to wait for all of it.

The seam lies before the first decoder layer that trains. Backward is done with the weights above it while it goes on
below, so their gradients can be reduced meanwhile, as ZeRO-2 does on several ranks; and the next pass reads these
weights last, so they can be updated and sent to the other ranks while it runs below, if AdamW is compiled. Only a
recorded pass is cut (``recorded.py``): any other waits for all weights before it begins, and says nothing of gradients
before it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Seam:
    """What passes and the optimizer tell each other. They queue work on two streams; nothing here waits on the host."""

    def __init__(self) -> None:
        """Nowhere: nothing is above."""
        self.layer: nn.Module | None = None
        """The first decoder layer that trains."""
        self.weights: frozenset[Tensor] = frozenset()
        """Those that train and are read above the seam alone: a head that is the embedding too is not among them."""
        self.is_cut = False
        """Whether the pass that began last is cut here."""
        self._has_gradients: Any = None
        self._is_updated: Any = None
        self._held: Sequence[Tensor] = ()
        self._stream: torch.cuda.Stream | None = None
        """Of the passes, where an update is under way."""

    def find(self, asr: Any) -> None:
        """Place the seam in a native model, after what trains there has changed."""
        model = asr.model.language_model
        layers = list(model.layers)
        first = next((at for at, layer in enumerate(layers) if _trains(layer)), None)
        self.layer, self.weights = None, frozenset()
        if first is not None:
            self.layer = layers[first]
            above = nn.ModuleList([*layers[first:], model.norm, asr.lm_head]).parameters()
            self.weights = frozenset(part for part in above if part.requires_grad) - {model.embed_tokens.weight}

    # ---- gradients: the pass tells the optimizer

    def begin_pass(self, *, is_cut: bool) -> None:
        """Forget what a pass that came to nothing has said."""
        self.is_cut, self._has_gradients = is_cut, None

    def gradients_are_queued(self) -> None:
        """The gradients of ``weights`` are complete when the current stream comes to this point."""
        self._has_gradients = torch.cuda.current_stream().record_event()

    def take_gradients(self) -> torch.cuda.Event | None:
        """When the gradients of ``weights`` are complete; None if no sooner than the others, or if asked before."""
        event, self._has_gradients = self._has_gradients, None
        return event

    # ---- new weights: the optimizer tells the pass

    def updates_are_queued(self, stream: torch.cuda.Stream, read: Sequence[Tensor]) -> None:
        """``weights`` are the new ones when ``stream`` comes to this point.

        ``read``: what is read there, from memory of the current stream. It is kept until that one has waited.
        """
        self._is_updated, self._held, self._stream = stream.record_event(), read, torch.cuda.current_stream()

    def wait(self) -> None:
        """From here on the stream of the passes, which is current, finds the new weights. A cut pass calls it here."""
        if self._is_updated is None:
            return
        current = torch.cuda.current_stream()
        assert current == self._stream, "the passes would not wait, and what the update reads would be overwritten"
        current.wait_event(self._is_updated)
        self._is_updated, self._held = None, ()


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())
