"""After an out-of-memory error: halve the micro-batch for the rest of the run; ``clips_per_step`` stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hebrew_asr.config.batching import Batching
from hebrew_asr.errors import OutOfMemory, TrainingFault
from hebrew_asr.files import as_os_error, from_json, write_json
from hebrew_asr.report.records import FaultRecord, as_row, from_row

if TYPE_CHECKING:
    from hebrew_asr.engine.engine import MicroBatchTooLarge

_FILE = "max_micro_batch.json"


def smaller_batching(
    batching: Batching, too_large: MicroBatchTooLarge, step: int, folder: Path, *, accumulates: bool = True
) -> Batching:
    """Micro-batches half as large, with which to run step ``step`` (from 0) again.

    Raises:
        OutOfMemory: the other ranks cannot be told; the new limit is in the run directory ``folder``, for a resume.
        TrainingFault: a micro-batch is a single clip already, or the profile does not accumulate.
    """
    where = f"step {step + 1}: rank {', '.join(map(str, too_large.ranks))} ran out of device memory in {too_large.part}"
    smaller = batching.halved() if accumulates else None
    if smaller is None:
        why = "a micro-batch is one clip already" if accumulates else "ZeRO stage 0 with bf16 cannot split a step"
        raise TrainingFault(
            f"{where}, and {why} ({too_large.reason}); use a profile that shards or "
            f"offloads more (a higher ZeRO stage, offload_optimizer), or lower data.max_duration_s"
        )
    if not too_large.is_agreed:
        what_next = (
            f"go on with --resume auto, which takes at most {smaller.max_micro_batch} clips at a time instead of "
            f"{batching.max_micro_batch}"
        )
        try:
            write_json(folder / _FILE, as_row(fault_record(smaller, too_large, step)))
        except OSError as error:
            what_next = f"{folder / _FILE} could not be written ({as_os_error(error).strerror}), so a resume will too"
        raise OutOfMemory(f"{where}, where the other ranks cannot follow; {what_next}")
    return smaller


def fault_record(batching: Batching, too_large: MicroBatchTooLarge, step: int) -> FaultRecord:
    """The record of an out-of-memory error in step ``step`` (from 0), which runs again by ``batching``."""
    return FaultRecord(
        step=step + 1,
        kind="out-of-memory",
        part=too_large.part,
        ranks=too_large.ranks,
        max_micro_batch=batching.max_micro_batch,
        batching=str(batching),
    )


def earlier_fault(folder: Path) -> FaultRecord | None:
    """The record that ended an earlier session of the run; None if there is none, or it cannot be read."""
    try:
        record = from_row(from_json((folder / _FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):  # if it is damaged, what it says is found out again
        return None
    return record if isinstance(record, FaultRecord) and record.max_micro_batch else None
