"""Proves that the first step of a phase trained all that it should, on every rank, and nothing else.

Whether a weight moved says little. The gradient of a key's bias is 0 but for rounding, since softmax ignores what is
added to all keys; and a small step of a large norm weight is lost in rounding. So every link of the chain is checked,
for each parameter that should train:

1. it lies in one param group and, each element once, in the partitions of all ranks together;
2. autograd gave it a gradient, on every rank;
3. AdamW counted a step where it is owned, and where that gradient was not 0 the moments show one;
4. its fp32 master moved wherever the step that the moments call for is more than rounding can swallow;
5. the weight that the model computes with is that master, rounded.

All other weights have the bits that they had before, and all ranks hold the same ones.

3, 4 and 5 compare single elements: all of a small model, and a sample of a large one, so that a rank remembers 256 MiB
at most. 1, 2, the step count and frozen weights are checked without exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hebrew_asr.engine import zero
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.fingerprint import CHUNK, fingerprint
from hebrew_asr.errors import TrainingFault
from hebrew_asr.model.phases import ParameterGroup, num_weights

_MOST_COMPARED = 1 << 25
"""About how many elements a rank compares; it remembers 8 bytes of each."""
_COMPARED_WHOLE = 1 << 14
"""Fragments of up to so many elements are compared whole."""
_ENOUGH = 8
"""Elements with a gradient that a fragment's moments must show: rounding noise in fewer may cancel between ranks."""
_ROUNDING = 1e-6
"""Relative; a moment that takes in a gradient of 0 is off its mere decay by less."""
_TINY = 1e-37
"""A processor may flush what is smaller to 0."""


@dataclass
class _Piece:
    """A fragment of this rank, and its compared elements as they were before the step."""

    partition: zero.Partition
    fragment: zero.Fragment
    stride: int
    master: Tensor
    exp_avg: Tensor

    def compared(self, flat: Tensor) -> Tensor:
        """The elements in a tensor that is laid out as the partition."""
        return _every(flat, self.fragment.offset, self.fragment.length, self.stride)


def _every(flat: Tensor, start: int, length: int, stride: int) -> Tensor:
    return flat.detach().reshape(-1)[start : start + length : stride]


class _Findings:
    """What is wrong with which parameters, on this rank."""

    def __init__(self, ranks: Ranks):
        """Nothing, so far."""
        self._ranks = ranks
        self._names: dict[str, list[str]] = {}

    def add(self, what: str, names: Iterable[str]) -> None:
        """``what``: as in "2 parameters <what>"; names may be added again."""
        for name in names:
            known = self._names.setdefault(what, [])
            if name not in known:
                known.append(name)

    def raise_if_any(self) -> None:
        """Raise TrainingFault on every rank if one of them has found something; collective."""
        names_of: dict[str, dict[str, None]] = {}
        ranks_of: dict[str, list[int]] = {}
        for rank, found in enumerate(self._ranks.gather(self._names)):
            for what, names in found.items():
                names_of.setdefault(what, {}).update(dict.fromkeys(names))
                ranks_of.setdefault(what, []).append(rank)
        problems = []
        for what, names in names_of.items():
            some = len(ranks_of[what]) < self._ranks.size
            where = f" on rank {', '.join(map(str, ranks_of[what]))}" if some else ""
            first, more = ", ".join([*names][:5]), ", …" if len(names) > 5 else ""
            problems.append(f"{len(names)} parameters {what}{where} ({first}{more})")
        if problems:
            raise self._ranks.in_common(TrainingFault("phase proof failed: " + "; ".join(problems)))


class PhaseProof:
    """What is remembered of a phase's first effective step, and compared after it."""

    def __init__(self, asr: nn.Module, groups: list[ParameterGroup], zero_stage: int, ranks: Ranks):
        """Nothing is read yet: ``watch`` does, right before the step that is to be proved."""
        self._asr, self._stage, self._ranks = asr, zero_stage, ranks
        self._group_of = {name: group.name for group in groups for name in group.parameters}
        self._parameters = dict(asr.named_parameters())

    @contextmanager
    def watch(self, engine: Any) -> Iterator[None]:
        """Remember weights and state as they are; within, see gradients arrive, in the step's passes. Collective.

        A tensor hook runs before a gradient is added up anywhere, of a compiled backward pass as well. It stays only
        for these passes, outside of any graph.
        """
        self._remember(engine)
        hooks = [
            self._parameters[name].register_hook(partial(self._see, name))
            for name in self._group_of
            if self._parameters[name].requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def conclude(self, engine: Any) -> dict[str, int]:
        """Compare, after the step; collective.

        Returns:
            ``trainable``: weights of which all of the above holds; ``compared``: those of which single elements were
            compared, and ``moved``: of these, the masters that are other numbers than before; ``frozen``: weights with
            the bits that they had.

        Raises:
            TrainingFault: on every rank, naming the parameters at fault and the ranks that found it.
        """
        findings = _Findings(self._ranks)
        self._check_layout(findings)
        findings.add("should train and got no gradient", (name for name in self._group_of if not self._arrived[name]))
        for partition, step in zip(zero.partitions(engine, self._asr), self._steps, strict=True):
            if float(zero.adam_state(engine, partition)["step"]) != step + 1:
                names = (fragment.parameter for fragment in partition.fragments)
                findings.add("should train and AdamW took no step on them", names)
        counts = self._check_elements(engine, findings)
        strayed = (self._frozen_fingerprints() != self._frozen).any(dim=1)
        findings.add("are frozen and moved", _where(strayed, self._frozen_names()))
        self._check_agreement(findings)
        findings.raise_if_any()
        sizes = {name: num_weights(parameter) for name, parameter in self._parameters.items()}
        trainable = sum(sizes[name] for name in self._group_of)
        return {"trainable": trainable, **counts, "frozen": sum(sizes.values()) - trainable}

    # ---- before the step

    def _remember(self, engine: Any) -> None:
        partitions = zero.partitions(engine, self._asr)
        own = [(partition.group, fragment) for partition in partitions for fragment in partition.fragments]
        self._held = self._ranks.gather(own)
        most = max(sum(fragment.length for _, fragment in held) for held in self._held)
        self._stride = -(-most // _MOST_COMPARED) | 1  # odd: an even one would pass over columns of matrices
        runs = sorted({_run(fragment) for held in self._held for _, fragment in held})
        self._row_of = {run: row for row, run in enumerate(runs)}
        self._runs_of: dict[str, list[tuple[str, int, int]]] = {name: [] for name in self._group_of}
        for run in runs:
            self._runs_of.setdefault(run[0], []).append(run)
        self._with_gradient = torch.zeros(len(runs), dtype=torch.int64, device=self._ranks.device)
        self._arrived = dict.fromkeys(self._group_of, 0)
        self._pieces, self._steps = [], []
        for partition in partitions:
            state = zero.adam_state(engine, partition)
            self._steps.append(float(state["step"]))
            for fragment in partition.fragments:
                piece = _Piece(partition, fragment, self._stride_of(fragment.length), *[torch.empty(0)] * 2)
                piece.master = piece.compared(partition.master).clone()
                piece.exp_avg = piece.compared(state["exp_avg"]).clone()
                self._pieces.append(piece)
        self._frozen = self._frozen_fingerprints()

    def _stride_of(self, length: int) -> int:
        return self._stride if length > _COMPARED_WHOLE else 1

    def _see(self, name: str, gradient: Tensor | None) -> None:
        """Count the compared elements in which a gradient is not 0, whichever rank owns them.

        A compiled pass hands over nothing for a weight that the loss does not depend on.
        """
        if gradient is None:
            return
        self._arrived[name] += 1
        for run in self._runs_of[name]:
            _, start, length = run
            seen = _every(gradient, start, length, self._stride_of(length)).count_nonzero()
            row = self._with_gradient[self._row_of[run]]
            torch.maximum(row, seen, out=row)

    # ---- after it

    def _check_layout(self, findings: _Findings) -> None:
        """Every element that should train is in the partitions once, and what requires a gradient is what should."""
        names = self._group_of.keys()
        requiring = {name for name, parameter in self._parameters.items() if parameter.requires_grad}
        findings.add("require gradients and should not train", sorted(requiring - names))
        findings.add("should train and require no gradient", sorted(names - requiring))
        # Without sharding every rank holds everything.
        wholes = self._held if self._stage == 0 else [[piece for held in self._held for piece in held]]
        for held in wholes:
            groups: dict[str, set[str]] = {}
            runs: dict[str, list[tuple[int, int]]] = {}
            for group, fragment in held:
                groups.setdefault(fragment.parameter, set()).add(group)
                runs.setdefault(fragment.parameter, []).append((fragment.start, fragment.length))
            for name, group in self._group_of.items():
                size = num_weights(self._parameters[name])
                if groups.get(name, {group}) != {group}:
                    findings.add("lie in another param group than their own", [name])
                if not _covers(sorted(runs.get(name, [])), size):
                    findings.add("should train and are not in the optimizer's partitions, each element once", [name])
            findings.add("should not train and are in the optimizer's partitions", sorted(groups.keys() - names))

    def _check_elements(self, engine: Any, findings: _Findings) -> dict[str, int]:
        """The moments, masters and weights of this rank's fragments; returns counts over all ranks."""
        with_gradient = (self._ranks.max(self._with_gradient) >= _ENOUGH).tolist()
        compared = moved = 0
        for piece in self._pieces:
            name, partition = [piece.fragment.parameter], piece.partition
            state, options = zero.adam_state(engine, partition), zero.options_of(engine, partition)
            after = [piece.compared(part) for part in (partition.master, state["exp_avg"], state["exp_avg_sq"])]
            shows = stuck = False
            chunks = [part.split(CHUNK) for part in (piece.master, piece.exp_avg, *after)]
            for old, old_avg, new, avg, avg_sq in zip(*chunks, strict=True):
                has_moved = new != old
                moved += int(has_moved.sum())
                compared += len(old)
                shows |= bool(((avg - options["betas"][0] * old_avg).abs() > _ROUNDING * old_avg.abs()).any())
                stuck |= bool((_must_move(old, avg, avg_sq, float(state["step"]), options) & ~has_moved).any())
            if stuck:
                findings.add("should train and did not move where AdamW's moments say that they must", name)
            if with_gradient[self._row_of[_run(piece.fragment)]] and not shows:
                findings.add("should train and their gradient did not reach AdamW's moments", name)
            weights = self._weights(piece)
            if not torch.equal(weights, after[0].to(weights)):
                findings.add("are not what their masters say", name)
        counts = torch.tensor([compared, moved], dtype=torch.int64, device=self._ranks.device)
        if self._stage == 0 and not self._ranks.is_main:
            counts.zero_()
        compared, moved = self._ranks.sum(counts).tolist()
        return {"compared": compared, "moved": moved}

    def _weights(self, piece: _Piece) -> Tensor:
        start = 0 if self._stage == 3 else piece.fragment.start
        return _every(self._local(piece.fragment.parameter), start, piece.fragment.length, piece.stride)

    def _local(self, name: str) -> Tensor:
        """The part of a parameter that lies on this rank: all of it, but under ZeRO-3."""
        parameter = self._parameters[name]
        return parameter.ds_tensor if self._stage == 3 else parameter  # type: ignore[attr-defined]

    def _frozen_names(self) -> list[str]:
        return [name for name in self._parameters if name not in self._group_of]

    def _frozen_fingerprints(self) -> Tensor:
        """(frozen parameters, 2)."""
        rows = [fingerprint(self._local(name)).to(self._ranks.device) for name in self._frozen_names()]
        return torch.stack(rows) if rows else torch.zeros(0, 2)

    def _check_agreement(self, findings: _Findings) -> None:
        """Under ZeRO 0-2 every rank holds all weights: they must be the same bits."""
        if self._stage == 3 or self._ranks.size == 1:
            return
        rows = torch.stack([fingerprint(p).to(self._ranks.device) for p in self._parameters.values()])
        highest, lowest = self._ranks.max(rows.clone()), -self._ranks.max(-rows)
        apart = (highest != lowest).any(dim=1)
        findings.add("are not the same on all ranks", _where(apart, self._parameters))


def _where(said: Tensor, names: Iterable[str]) -> list[str]:
    """The names of which it is said."""
    return [name for name, is_so in zip(names, said.tolist(), strict=True) if is_so]


def _run(fragment: zero.Fragment) -> tuple[str, int, int]:
    """A fragment as all ranks know it, wherever it lies."""
    return fragment.parameter, fragment.start, fragment.length


def _covers(runs: list[tuple[int, int]], size: int) -> bool:
    """Whether sorted runs of (first element, length) lie end to end over ``size`` elements."""
    end = 0
    for start, length in runs:
        if start != end:
            return False
        end += length
    return end == size


def _must_move(old: Tensor, avg: Tensor, avg_sq: Tensor, step: float, options: dict[str, Any]) -> Tensor:
    """Where a master cannot have stayed what it was: from its moments after the step, by AdamW's formula.

    Half a unit in its last place is lost to rounding, or two where weight decay multiplies it by a rounded factor.
    Without any gradient so far nothing has to move: decay may be kept from such weights.
    """
    beta1, beta2 = options["betas"]
    rate, decay = options["lr"], options["weight_decay"]
    denominator = (avg_sq / (1 - beta2**step)).sqrt() + options["eps"]
    change = (rate / (1 - beta1**step) * avg / denominator + rate * decay * old).abs()
    unit = torch.nextafter(old.abs(), torch.full_like(old, torch.inf)) - old.abs()
    lost = unit * (2.0 if decay else 0.51)
    return (change > lost.clamp(min=_TINY)) & ((avg != 0) | (avg_sq != 0))
