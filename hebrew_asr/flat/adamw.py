"""AdamW over ZeRO's flat buffers for bf16 weights: the base class of stages 1 to 3.

All lay the weights of a param group end to end and give each rank one slice of them, with its fp32 masters. DeepSpeed
0.19.8 then takes the norm tensor by tensor, and makes pass after pass over gradients, masters and weights. Here a step
is: the norm of this rank's gradients, AdamW with clipping and the bf16 copy compiled to one kernel, and the new weights
to every rank, one group's while AdamW is at work on the next. Nothing waits for the device: whether the norm is finite
is decided there, so the host is free to queue the next step. Groups of weights that are read late in a recorded pass
(``passes/seam.py``) are updated and sent on a stream of their own, under the beginning of the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as torch_dist
from torch import Tensor

from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.flat.live_rows import LiveRows, Source
from hebrew_asr.passes.compiled import CANNOT_COMPILE
from hebrew_asr.passes.seam import Seam


def update(
    master: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    grad_scale: Tensor,
    found_inf: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW (Loshchilov and Hutter 2019, as ``torch.optim.AdamW``) on a flat group: one kernel, once compiled.

    torch's own, compiled, gives NaN where the rate and a second moment are 0, and knows no ``found_inf``.

    Args:
        master: (weights,) fp32; so are ``exp_avg`` and ``exp_avg_sq``. All three change.
        gradient: (weights,) fp32 or bf16.
        step: scalar, steps taken so far; changes too.
        weights: (weights,) bf16, overwritten.
        learning_rate: scalar on the device; a number would be compiled into the kernel.
        grad_scale: scalar that gradients are divided by.
        found_inf: scalar; anything but 0 leaves all as it was.
        betas, eps, weight_decay: of ``torch.optim.AdamW``.
    """
    beta1, beta2 = betas
    scaled, new_step = gradient.float() / grad_scale, step + 1
    new_avg = torch.lerp(exp_avg, scaled, 1 - beta1)
    new_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * scaled.square()
    rate = learning_rate / (1 - beta1**new_step)
    denominator = new_avg_sq.sqrt() / (1 - beta2**new_step).sqrt() + eps
    new_master = master * (1 - learning_rate * weight_decay) - rate * new_avg / denominator
    new = (new_master, new_avg, new_avg_sq, new_step)
    for before, after in zip((master, exp_avg, exp_avg_sq, step), new, strict=True):
        before.copy_(torch.where(found_inf == 0, after, before))
    weights.copy_(master)


class _Update(NamedTuple):
    """What AdamW does to a param group in a step."""

    options: dict[str, Any]
    gradient: Tensor
    weights: Tensor
    """Overwritten by the new ones: this rank's slice of the group, or what is live of it."""
    rows: LiveRows | None
    grad_scale: Tensor
    found_inf: Tensor


class FlatAdamW:
    """The step of a ZeRO optimizer; a subclass says where its stage keeps masters, gradients and weights."""

    # What both of DeepSpeed's classes hold.
    optimizer: torch.optim.Optimizer
    clip_grad: float
    dp_process_group: Any

    _holds_gradients: bool
    """Whether this step's gradients lie in the buffers, or there is something to be overwritten."""
    _update: Callable[..., None] | None
    """:func:`update`, compiled."""

    _seam: Seam
    _aside: torch.cuda.Stream | None
    """For what may run beside a pass; None on a CPU, or if nothing is above the seam."""
    _late: list[bool]
    """Of every param group, whether all its weights are read above the seam alone, and it can wait until then."""
    _live: list[LiveRows | None]
    """Of every param group, what it is handled by if it is a weight of which most rows stay."""

    def _convert(self, *, compiled: bool, seam: Seam) -> None:
        """``compiled``: if AdamW is not, torch's fused one runs, and another pass copies the weights.

        ``seam``: of the passes that read the weights.
        """
        self._holds_gradients, self._seam = False, seam
        self._update = torch.compile(update, fullgraph=True, dynamic=True) if compiled else None
        self._aside = torch.cuda.Stream() if seam.weights and self._masters()[0].is_cuda else None
        self._late = [self._aside is not None and seam.weights.issuperset(group) for group in self._parameters()]
        self._live = [None] * len(self._late)

    def _masters(self) -> list[Tensor]:
        """(weights,) fp32 of every param group: this rank's slice."""
        raise NotImplementedError

    def _own_gradients(self) -> list[Tensor]:
        """(weights,) of every param group: the mean over ranks, of this rank's slice or of its live part; fp32, or bf16
        where that is all that there is of it."""
        raise NotImplementedError

    def _parameters(self) -> list[list[Tensor]]:
        """Of every param group."""
        raise NotImplementedError

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """bf16 of every param group: all of it, (ranks × weights,), and of that this rank's slice.

        Or that slice twice, where no rank holds more.
        """
        raise NotImplementedError

    @property
    def num_ranks(self) -> int:
        """Among which the optimizer is cut."""
        return torch_dist.get_world_size(self.dp_process_group)

    @property
    def rank(self) -> int:
        """This one among them."""
        return torch_dist.get_rank(self.dp_process_group)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, AdamW on this rank's masters, the new weights to every rank; no change if the norm is not finite."""
        gradients = self._own_gradients()
        squares = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).square().sum()
        if self.num_ranks > 1:
            torch_dist.all_reduce(squares, group=self.dp_process_group)
        norm = squares.sqrt()
        self._holds_gradients = False
        self._global_grad_norm: Any = norm
        # As with torch.amp.GradScaler, AdamW divides by the one, and leaves everything alone if the other is 1.
        grad_scale = (norm / self.clip_grad).clamp(min=1) if self.clip_grad > 0 else torch.ones_like(norm)
        found_inf = norm.isfinite().logical_not().float()
        self._update_groups(gradients, grad_scale, found_inf, late=False)
        if any(self._late):
            with self._under_the_next_pass([grad_scale, found_inf, *gradients]):
                self._update_groups(gradients, grad_scale, found_inf, late=True)

    def _update_groups(self, gradients: list[Tensor], grad_scale: Tensor, found_inf: Tensor, *, late: bool) -> None:
        """AdamW, and the new weights to every rank, for the param groups that are late or for the others."""
        begun = []
        groups = zip(self.optimizer.param_groups, gradients, self._weights(), self._live, self._late, strict=True)
        for options, gradient, (flat, own), rows, is_late in groups:
            if is_late == late:
                fresh = own if rows is None else flat.new_empty(rows.length)
                self._update_group(_Update(options, gradient, fresh, rows, grad_scale, found_inf))
                begun.append(self._share(flat, fresh, rows))
        for end in begun:
            end()

    def _update_group(self, one: _Update) -> None:
        (master,) = one.options["params"]
        if self._update is not None:
            try:
                self._update_compiled(self._update, one)
                return
            except CANNOT_COMPILE as error:  # before anything of this group changed
                self._update = None
                note_fallback("AdamW could not be compiled and takes more passes over memory", error)
        self.optimizer.grad_scale, self.optimizer.found_inf = one.grad_scale, one.found_inf  # type: ignore[attr-defined]
        gradient = one.gradient.float()
        master.grad = gradient if one.rows is None else torch.zeros_like(master)
        if one.rows is not None:
            one.rows.put_own(master.grad, gradient)
        self.optimizer.step()  # of this group alone: no other has a gradient
        master.grad = None
        one.weights.copy_(master if one.rows is None else one.rows.own(master))

    def _update_compiled(self, compiled: Callable[..., None], one: _Update) -> None:
        options, (master,) = one.options, one.options["params"]
        state = self.optimizer.state[master]
        slices = master, state["exp_avg"], state["exp_avg_sq"]
        moved = slices if one.rows is None else [one.rows.own(part) for part in slices]
        compiled(
            *(moved[0], one.gradient, *moved[1:], state["step"], one.weights),
            *(torch.full_like(one.grad_scale, options["lr"]), one.grad_scale, one.found_inf),
            *(options["betas"], options["eps"], options["weight_decay"]),
        )
        if one.rows is not None:
            for part, values in zip(slices, moved, strict=True):
                one.rows.put_own(part, values)

    @contextmanager
    def _under_the_next_pass(self, read: list[Tensor]) -> Iterator[None]:
        """What is queued within may run while the next pass is below the seam. ``read``: what of a step it needs."""
        assert self._aside is not None
        self._aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._aside):
                yield
        finally:
            self._seam.updates_are_queued(self._aside, read)

    def _take(self, sources: Sequence[Source], buffers: list[Tensor]) -> None:
        """Put a micro-batch's gradients into buffers, one per source, or add them to these; then drop them."""
        sums, fresh = [], []
        for source, buffer in zip(sources, buffers, strict=True):
            if source.grad is not None:
                sums.append(buffer)
                fresh.append(source.grad.view(-1))
                source.grad = None
            elif not self._holds_gradients:
                buffer.zero_()
        if sums:
            accumulate = torch._foreach_add_ if self._holds_gradients else torch._foreach_copy_
            accumulate(sums, fresh)
        self._holds_gradients = True

    def _share(self, flat: Tensor, own: Tensor, rows: LiveRows | None) -> Callable[[], None]:
        """Begin to send this rank's new weights to the others, and theirs here; returns what ends it.

        ``own`` is a part of ``flat``, or with ``rows`` what belongs there.
        """
        found, work = own, None
        if self.num_ranks > 1 and flat is not own:
            found = flat if rows is None else flat.new_empty(rows.numel())
            work = torch_dist.all_gather_into_tensor(found, own, group=self.dp_process_group, async_op=True)

        def end() -> None:
            wait(work)
            if rows is not None:
                rows.put_all(flat, found)

        return end

    def _mean_to_owners(self, own: Tensor, whole: Tensor, *, async_op: bool = False) -> torch_dist.Work | None:
        """The mean over ranks of ``whole``, (ranks × n,), of which rank r gets the r-th part as ``own``, (n,).

        ``own`` may be that part of ``whole``. A CPU is done when this returns; CUDA with ``async_op`` is not.
        """
        if whole.is_cuda:
            mean = torch_dist.ReduceOp.AVG
            return torch_dist.reduce_scatter_tensor(own, whole, mean, group=self.dp_process_group, async_op=async_op)
        torch_dist.reduce_scatter_tensor(own, whole, group=self.dp_process_group)  # gloo has no mean
        own.div_(self.num_ranks)
        return None


def wait(work: torch_dist.Work | None) -> None:
    """Under NCCL it is the device that waits, before what is queued next."""
    if work is not None:
        work.wait()
