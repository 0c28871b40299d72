"""Optimizer state that outlives its engine: fp32 masters, exp_avg, exp_avg_sq and step, by parameter name.

Within a process (the phase switch) the partitions of a surviving group keep their layout, so carrying is a rank-local
copy. On disk every rank writes its partitions with their fragments, and any rank count or ZeRO stage can read them:
a reader takes the elements it needs from whichever files hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.zero import Fragment, Partition, adam_state
from hebrew_asr.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)


@dataclass
class CarriedPartition:
    """A partition's state, detached from the engine that made it."""

    group: str
    fragments: list[Fragment]
    tensors: dict[str, torch.Tensor]
    """``master``, ``exp_avg``, ``exp_avg_sq``: flat fp32, all of one length."""
    step: float


def capture(engine: Any, partitions: list[Partition]) -> list[CarriedPartition]:
    """Take the state of every partition. The moments are moved, not copied; the masters are what costs memory."""
    carried = []
    for partition in partitions:
        step = float(adam_state(engine, partition)["step"])
        carried.append(CarriedPartition(partition.group, partition.fragments, _flat_views(engine, partition), step))
    return carried


def restore(
    engine: Any, partitions: list[Partition], carried: list[CarriedPartition], ranks: Ranks
) -> list[CarriedPartition]:
    """Put carried state into the partitions of the groups that survive; new groups start at step 0. Collective.

    Within a process a group keeps its layout, so that this is a copy. The state of a group that had left, read back
    on another rank count or ZeRO stage, lies as it was written: the ranks then exchange it piece by piece.

    Returns:
        What no group of the new engine took: the state of groups that left, to be kept for when they return.
    """
    waiting = _by_group(carried)
    homes = _by_group(partitions)
    own = {group: (group in waiting, _same_layout(home, waiting.get(group, []))) for group, home in homes.items()}
    told = ranks.gather(own)
    for group, home in homes.items():
        items = waiting.pop(group, [])
        if all(fits for _, fits in (rank[group] for rank in told)):
            for partition, item in zip(home, items, strict=True):
                _put_back(engine, partition, item)
        elif any(has for has, _ in (rank[group] for rank in told)):
            _exchange(engine, home, items, ranks)
    return [item for items in waiting.values() for item in items]


def _by_group(items: Sequence[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(item.group, []).append(item)
    return found


def _same_layout(home: list[Partition], items: list[CarriedPartition]) -> bool:
    layouts = [[(part.fragments, size) for part, size in parts] for parts in (_sized(home), _sized(items))]
    return layouts[0] == layouts[1]


def _sized(parts: Sequence[Any]) -> list[tuple[Any, int]]:
    return [(p, (p.master if isinstance(p, Partition) else p.tensors["master"]).numel()) for p in parts]


def _put_back(engine: Any, partition: Partition, item: CarriedPartition) -> None:
    state, device = adam_state(engine, partition), partition.master.device
    with torch.no_grad():
        partition.master.copy_(item.tensors["master"].view_as(partition.master))
        state["step"].fill_(item.step)
    for kind in MOMENTS:  # moved, not copied; from the host where they were read from a file
        state[kind] = item.tensors[kind].view_as(partition.master).to(device)


def _exchange(engine: Any, home: list[Partition], items: list[CarriedPartition], ranks: Ranks) -> None:
    """Every rank shows its pieces of a group to all, and each takes the elements that are now its own."""
    destinations = [_flat_views(engine, partition) for partition in home]
    missing = sum(fragment.length for partition in home for fragment in partition.fragments)
    shown = ranks.gather([(item.fragments, item.step, item.tensors["master"].numel()) for item in items])
    for owner, pieces in enumerate(shown):
        for index, (fragments, step, size) in enumerate(pieces):
            for kind in KINDS:
                mine = items[index].tensors[kind].cpu() if owner == ranks.rank else torch.empty(size)
                piece = ranks.broadcast_tensor(mine, owner)
                for partition, flat in zip(home, destinations, strict=True):
                    taken = _take(piece, fragments, flat[kind], partition.fragments)
                    missing -= taken if kind == "master" else 0
            for partition in home:
                adam_state(engine, partition)["step"].fill_(step)
    assert missing == 0, f"{missing} elements of group {home[0].group} are with no rank"


def _take(source: torch.Tensor, there: list[Fragment], target: torch.Tensor, here: list[Fragment]) -> int:
    """Copy what ``target`` wants of ``source``; returns how many elements that was."""
    taken = 0
    by_name = {fragment.parameter: fragment for fragment in there}
    for fragment in here:
        piece = by_name.get(fragment.parameter)
        if piece is None:
            continue
        first = max(fragment.start, piece.start)
        length = min(fragment.start + fragment.length, piece.start + piece.length) - first
        if length > 0:
            values = source.narrow(0, piece.offset + first - piece.start, length)
            target.narrow(0, fragment.offset + first - fragment.start, length).copy_(values)
            taken += length
    return taken


def _flat_views(engine: Any, partition: Partition) -> dict[str, torch.Tensor]:
    """Flat views of a partition's master and moments."""
    state = adam_state(engine, partition)
    return {"master": partition.master.detach().view(-1), **{kind: state[kind].view(-1) for kind in MOMENTS}}


def num_bytes(carried: list[CarriedPartition]) -> int:
    """Bytes that the tensors take, in memory and on disk."""
    return sum(tensor.nbytes for item in carried for tensor in item.tensors.values())


def save_partitions(path: Path, carried: list[CarriedPartition]) -> None:
    """Write one rank's partitions: safetensors, with the layout as JSON in its header."""
    tensors, layout = {}, []
    for index, item in enumerate(carried):
        tensors |= {f"{index}.{kind}": tensor for kind, tensor in item.tensors.items()}
        layout.append({"group": item.group, "step": item.step, "fragments": [asdict(f) for f in item.fragments]})
    save_file(tensors, path, metadata={"layout": json.dumps(layout)})


class StateReader:
    """Reads any run of any parameter's state from the files that all ranks wrote."""

    def __init__(self, folder: Path):
        """Open every rank's file in ``folder``.

        Raises:
            CheckpointError: there are none, or one is not what ``save_partitions`` writes.
        """
        self._files = ExitStack()
        self._layouts: list[tuple[Any, list[dict[str, Any]]]] = []
        self._pieces: dict[str, list[tuple[Any, str, Fragment]]] = {}
        self.steps: dict[str, float] = {}
        """AdamW's step of each param group."""
        paths = sorted(folder.glob("optimizer-rank*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no optimizer state")
        for path in paths:
            try:
                file = self._files.enter_context(safe_open(path, framework="pt"))
                layout = json.loads(file.metadata()["layout"])
            except Exception as error:
                raise CheckpointError(f"cannot read optimizer state {path}: {error}") from error
            self._layouts.append((file, layout))
            for index, entry in enumerate(layout):
                self.steps[entry["group"]] = entry["step"]
                for values in entry["fragments"]:
                    fragment = Fragment(**values)
                    self._pieces.setdefault(fragment.parameter, []).append((file, str(index), fragment))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

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
            if self.num_elements(name) != parameter.numel():
                stored = self.num_elements(name)
                raise CheckpointError(f"{name} has {stored} elements in the checkpoint, {parameter.numel()} here")
            with torch.no_grad():
                parameter.copy_(self.read(name, "master", 0, parameter.numel()).view_as(parameter))

    def load_partition(self, engine: Any, partition: Partition) -> None:
        """Fill one partition of a fresh engine, exactly."""
        destinations = _flat_views(engine, partition)
        for fragment in partition.fragments:
            for kind, destination in destinations.items():
                values = self.read(fragment.parameter, kind, fragment.start, fragment.length)
                destination[fragment.offset : fragment.offset + fragment.length].copy_(values)
        adam_state(engine, partition)["step"].fill_(self.steps[partition.group])

    def parked(self, trained: set[str], rank: int, num_ranks: int) -> list[CarriedPartition]:
        """State of groups that no phase trains now, dealt over ranks; it is only kept, and written again."""
        found = []
        for number, (file, layout) in enumerate(self._layouts):
            for index, entry in enumerate(layout):
                if entry["group"] in trained or number % num_ranks != rank:
                    continue
                tensors = {kind: file.get_tensor(f"{index}.{kind}") for kind in KINDS}
                fragments = [Fragment(**values) for values in entry["fragments"]]
                found.append(CarriedPartition(entry["group"], fragments, tensors, entry["step"]))
        return found
