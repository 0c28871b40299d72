"""Carries optimizer state over a rebuilt engine, to disk and back: fp32 masters, exp_avg, exp_avg_sq and step.

In a phase switch the partitions of a group keep their layout, so each rank copies its own. On disk every rank writes
its partitions with their fragments, and any rank count or ZeRO stage can read them: a reader takes the elements it
needs from whichever files hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hebrew_asr.engine.zero import Fragment, Partition, adam_state
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import from_json, give_usual_mode

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)


@dataclass
class PartitionState:
    """A partition's state, detached from the engine that made it."""

    group: str
    fragments: list[Fragment]
    tensors: dict[str, torch.Tensor]
    """``master``, ``exp_avg``, ``exp_avg_sq``: flat fp32, all of one length."""
    step: float


def capture(engine: Any, partitions: list[Partition]) -> list[PartitionState]:
    """Take the state of every partition. The moments are moved, not copied; the masters are what costs memory."""
    states = []
    for partition in partitions:
        step = float(adam_state(engine, partition)["step"])
        states.append(PartitionState(partition.group, partition.fragments, _flat_views(engine, partition), step))
    return states


def restore(engine: Any, partitions: list[Partition], states: list[PartitionState]) -> None:
    """Put states into the groups that they came from, which have kept their layout; new groups stay at step 0."""
    unfilled: dict[str, list[Partition]] = {}
    for partition in partitions:
        unfilled.setdefault(partition.group, []).append(partition)
    for item in states:
        partition = unfilled[item.group].pop(0)
        assert partition.fragments == item.fragments, f"the layout of {item.group} has changed"
        state = adam_state(engine, partition)
        with torch.no_grad():
            partition.master.copy_(item.tensors["master"].view_as(partition.master))
            state["step"].fill_(item.step)
        for kind in MOMENTS:  # moved, not copied
            state[kind] = item.tensors[kind].view_as(partition.master)


def _flat_views(engine: Any, partition: Partition) -> dict[str, torch.Tensor]:
    """Flat views of a partition's master and moments."""
    state = adam_state(engine, partition)
    return {"master": partition.master.detach().view(-1), **{kind: state[kind].view(-1) for kind in MOMENTS}}


def num_bytes(states: list[PartitionState]) -> int:
    """Bytes that the tensors take, in memory and on disk."""
    return sum(tensor.nbytes for item in states for tensor in item.tensors.values())


def save_partitions(path: Path, states: list[PartitionState]) -> None:
    """Write one rank's partitions: safetensors, with the layout as JSON in its header."""
    tensors, layout = {}, []
    for index, item in enumerate(states):
        tensors |= {f"{index}.{kind}": tensor for kind, tensor in item.tensors.items()}
        layout.append({"group": item.group, "step": item.step, "fragments": [asdict(f) for f in item.fragments]})
    save_file(tensors, path, metadata={"layout": json.dumps(layout)})
    give_usual_mode(path)


class StateReader(ExitStack):
    """Reads any run of any parameter's state from the files that all ranks wrote, which it holds open."""

    def __init__(self, folder: Path):
        """Open every rank's file in ``folder``.

        Raises:
            CheckpointError: there are none, or one is not what ``save_partitions`` writes.
        """
        super().__init__()
        self._pieces: dict[str, list[tuple[Any, str, Fragment]]] = {}
        self.steps: dict[str, float] = {}
        """AdamW's step of each param group."""
        self._step_of: dict[str, float] = {}
        paths = sorted(folder.glob("optimizer-rank*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no optimizer state")
        for path in paths:
            try:
                path.open("rb").close()  # of a file that may not be read safetensors says that there is none
                file = self.enter_context(safe_open(path, framework="pt"))
                for index, entry in enumerate(from_json(file.metadata()["layout"])):
                    for values in entry["fragments"]:
                        fragment = Fragment(**values)
                        self.steps[entry["group"]] = self._step_of[fragment.parameter] = entry["step"]
                        self._pieces.setdefault(fragment.parameter, []).append((file, str(index), fragment))
            except Exception as error:
                raise CheckpointError(f"cannot read optimizer state {path}: {error}") from error

    def parameters(self) -> Iterator[str]:
        """Names of all parameters with state."""
        return iter(self._pieces)

    def num_elements(self, parameter: str) -> int:
        """Elements stored of a parameter, over all ranks."""
        return sum(fragment.length for _, _, fragment in self._pieces[parameter])

    def read(self, parameter: str, kind: str, start: int, length: int) -> torch.Tensor:
        """``length`` elements of a parameter's flattened ``master``, ``exp_avg`` or ``exp_avg_sq``, from ``start``.

        Raises:
            CheckpointError: the files do not hold all of them.
        """
        out = torch.empty(length)
        filled = 0
        for file, index, piece in self._pieces.get(parameter, []):
            first, last = max(start, piece.start), min(start + length, piece.start + piece.length)
            if first < last:
                at = piece.offset + first - piece.start
                out[first - start : last - start] = file.get_slice(f"{index}.{kind}")[at : at + last - first]
                filled += last - first
        if filled != length:
            raise CheckpointError(f"the checkpoint holds {filled} of {length} elements of {parameter} ({kind})")
        return out

    def load_weights(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Set whole (unsharded) parameters to their stored masters, before an engine is built on them."""
        for name in self.parameters():
            if name not in parameters:
                raise CheckpointError(f"the checkpoint trains {name}, which this model does not have")
            parameter = parameters[name]
            if (stored := self.num_elements(name)) != parameter.numel():
                raise CheckpointError(f"{name} has {stored} elements in the checkpoint, {parameter.numel()} here")
            if not parameter.requires_grad:
                raise CheckpointError(f"the checkpoint trains {name}, which is frozen in this phase of the recipe")
            with torch.no_grad():
                parameter.copy_(self.read(name, "master", 0, parameter.numel()).view_as(parameter))

    def load_partitions(self, engine: Any, partitions: list[Partition]) -> None:
        """Fill all partitions of a fresh engine, exactly, whatever the groups that their parameters were in.

        Raises:
            CheckpointError: the files do not hold the state of all that trains here.
        """
        for partition in partitions:
            destinations = _flat_views(engine, partition)
            for fragment in partition.fragments:
                for kind, destination in destinations.items():
                    values = self.read(fragment.parameter, kind, fragment.start, fragment.length)
                    destination[fragment.offset : fragment.offset + fragment.length].copy_(values)
                adam_state(engine, partition)["step"].fill_(self._step_of[fragment.parameter])
