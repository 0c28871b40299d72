"""The records of ``metrics.jsonl``: what training writes, and what the report, the console and trackers read.

Fields have the order of the file's keys. A field with a default may be absent in a record of an older version.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias, get_args

from pydantic import TypeAdapter

from hebrew_asr.text.normalize import Mode


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """One optimizer step."""

    event: ClassVar[str] = "train"
    step: int
    """Optimizer steps done, this one included."""
    epoch: int
    """From 1."""
    phase: str
    lr: dict[str, float]
    """Learning rate of each module group."""
    clips: int
    """Clips that trained: without those that could not be read; 0 where the step was skipped."""
    audio_s: float
    """Recorded seconds of these clips."""
    step_s: float
    data_wait_s: float | None = None
    """The part of ``step_s`` that was spent waiting for the loader."""
    loss: float
    """Nats per supervised token."""
    grad_norm: float | None = None
    """Global norm before clipping."""
    tokens: int | None = None
    """Supervised tokens of the global batch."""
    sets: dict[str, int] | None = None
    """Clips of each data set, where these are mixed by weights or a temperature."""


@dataclass(frozen=True)
class Sample:
    """What was said in a clip and what was heard, as written, not normalized."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """An evaluation of a split, or of the sample of it."""

    event: ClassVar[str] = "eval"
    step: int
    split: str
    """``sample``, or ``eval`` for the whole split; ``best`` and ``mean`` are of the whole split too, but of the model
    that was chosen as the final one, the best checkpoint's or the mean of several."""
    wer: float
    cer: float
    wer_mode: Mode
    """Normalizer that the rates are counted in."""
    substitutions: int
    deletions: int
    insertions: int
    words: int
    """Words of the references."""
    clips: int
    unreadable: int | None = None
    """Clips that could not be decoded: all their words count as deletions."""
    sample_wer: float | None = None
    """WER of the sample's clips alone."""
    sample_clips: int | None = None
    wer_low_95: float | None = None
    """95 % interval of ``wer``, by bootstrap over ``groups``, or over clips, which makes it too narrow."""
    wer_high_95: float | None = None
    wer_by_set: dict[str, float] | None = None
    """WER of the clips of each data set, where their ids name several (:func:`hebrew_asr.text.sets.sets_of`)."""
    groups: int | None = None
    """Speakers, sessions or sources that the bootstrap draws as wholes; None where it draws clips."""
    eval_s: float | None = None
    """Seconds that the evaluation took."""
    heard: list[Sample] = field(default_factory=list)
    """A few of its clips, always the same ones; all are in ``samples/``."""

    @property
    def is_of_chosen(self) -> bool:
        """Whether it is of a model that took the place of the last step's."""
        return self.split in ("best", "mean")

    @property
    def key(self) -> tuple[int, str]:
        """What its samples are filed under."""
        return self.step, self.split


@dataclass(frozen=True, kw_only=True)
class MachineRecord:
    """What the run takes of its machines. Lists have a value for each rank; those of GPUs are empty on a CPU."""

    event: ClassVar[str] = "machine"
    step: int
    phase: str
    memory_gib: list[float] = field(default_factory=list)
    """Most that tensors took of the GPU at once, since the start of the phase or of this session of it."""
    reserved_gib: list[float] = field(default_factory=list)
    """Likewise, with what PyTorch's allocator holds ready; the CUDA context and NCCL come on top."""
    power_w: list[float] = field(default_factory=list)
    """Power that the GPU draws."""
    utilization_percent: list[float] = field(default_factory=list)
    """Share of the last second or less in which the GPU ran a kernel, however small."""
    host_gib: list[float] = field(default_factory=list)
    """Resident memory of the rank's process; its loaders' is not in it."""
    host_free_gib: list[float] = field(default_factory=list)
    """Memory that is available on the rank's machine."""


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """Weights counted by the proof after the first step of a phase, or of a resumed part of one."""

    event: ClassVar[str] = "phase"
    step: int
    """Steps done before the one that is proved."""
    name: str
    trainable: int
    compared: int | None = None
    """Weights compared one by one; None in records that say of whole tensors only that something in them moved."""
    moved: int
    """How many of the compared weights have moved."""
    frozen: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint that is sealed."""

    event: ClassVar[str] = "checkpoint"
    step: int
    path: str
    """Relative to the run directory."""
    write_s: float | None = None
    """Seconds from the copy of the state to the seal."""


@dataclass(frozen=True, kw_only=True)
class FaultRecord:
    """Something that went wrong and was borne; which fields it has follows from ``kind``."""

    event: ClassVar[str] = "fault"
    step: int
    kind: str
    """``non-finite``, ``unreadable``, ``out-of-memory``, ``fallback``, ``checkpoint``, ``damaged checkpoint``,
    ``final model`` or ``report``."""
    split: str | None = None
    """unreadable: the evaluation's split; None in training."""
    clips: list[str] = field(default_factory=list)
    """non-finite, unreadable in training: ids of the clips."""
    part: str | None = None
    """out-of-memory: forward, backward or features."""
    name: str | None = None
    """fallback: what is done in a slower way since then."""
    reason: str | None = None
    """fallback: why."""
    reasons: list[str] = field(default_factory=list)
    """unreadable, checkpoint, damaged checkpoint: one for each clip or checkpoint; final model, report: what
    went wrong."""
    ranks: list[int] = field(default_factory=list)
    """out-of-memory, fallback: the ranks that it happened on."""
    max_micro_batch: int | None = None
    """out-of-memory: most clips in a micro-batch from then on."""
    batching: str | None = None
    """out-of-memory: the batching from then on, in words."""


Record: TypeAlias = TrainRecord | EvalRecord | MachineRecord | PhaseRecord | CheckpointRecord | FaultRecord
_READERS: dict[str, TypeAdapter[Any]] = {kind.event: TypeAdapter(kind) for kind in get_args(Record)}
EVENTS = tuple(_READERS)


def as_row(record: Record) -> dict[str, Any]:
    """A record as it stands in ``metrics.jsonl``: its event first, and no field that is None or an empty list."""
    return {"event": record.event, **{key: value for key, value in asdict(record).items() if value not in (None, [])}}


def from_row(row: Any) -> Record | None:
    """The record of a JSON value; None for an event that this version does not know.

    Raises:
        ValueError, TypeError, KeyError: it is no record.
    """
    reader = _READERS.get(row["event"])
    return None if reader is None else reader.validate_python(row)
