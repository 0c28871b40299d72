"""What DeepSpeed's optimizers allocate a rank, read from the source of deepspeed 0.19.8 (the pinned release).

N trainable weights on W ranks, in param groups of which each is padded to whole partitions:

* ZeRO-1 in bf16 (``BF16_Optimizer``, as :mod:`hebrew_asr.flat.zero1` changes it): fp32 masters and moments
  12 N/W; an fp32 gradient buffer of all N, always there; the 16-bit ``.grad`` s of all N until a micro-batch is over.
* ZeRO-2 in bf16 (``DeepSpeedZeroOptimizer``, as :mod:`hebrew_asr.flat.zero2` changes it): masters and moments
  12 N/W; the 16-bit ``.grad`` s of all N until a micro-batch is over; the fp32 partition of gradients, 4 N/W, from the
  end of the first backward to that of the step (in 16 bits for one rank's only micro-batch, where AdamW is compiled;
  less where rows of the head stay, which only the texts say, so it is left out here: ``flat/live_rows.py``); on two
  ranks and more, while gradients are reduced, a bucket of ``reduce_bucket_size`` elements in fp32, twice with
  ``overlap_comm``. There, where passes are recorded as CUDA graphs, both are taken before backward, since reduction
  begins within it.
* ZeRO-2 in fp32, or with ``offload_optimizer``: masters and moments 12 N/W. ``setup_buckets`` allocates
  ``reduce_bucket_size`` elements of weight type at the first gradient, twice with ``overlap_comm``; the fp32 partition
  of gradients, 4 N/W, comes with the first reduction and goes after the step; a message is flattened and cast to fp32
  to be reduced. A parameter larger than the bucket (the embedding) is sent by itself.
* ZeRO-3 in bf16 (``DeepSpeedZeroOptimizer_Stage3``, as :mod:`hebrew_asr.flat.zero3` changes it): weights 1/W of each
  parameter; gradients as under ZeRO-2, but for the rows that stay; whole weights of what is at work, the head or parts
  of ``stage3_prefetch_bucket_size`` elements together, with the buffers through which they and the next ones come; and
  up to ``stage3_max_live_parameters`` elements from forward to backward.
* ZeRO-3 in fp32, or with a key that leaves it DeepSpeed's own (``offload_optimizer``): weights 1/W of each parameter,
  small ones whole; masters and moments 12 N/W; the fp32 gradient partition 4 N/W and a bucket in the communication
  type, always there; whole weights for the modules at work, up to ``stage3_max_live_parameters``, and a prefetch
  bucket.
* ``offload_optimizer`` moves masters and moments to the host, with fp32 gradients and 16-bit copies of the partition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hebrew_asr.config.profiles import Profile
from hebrew_asr.model.groups import WeightGroup
from hebrew_asr.model.sizes import Shapes

FP32 = 4
_MOMENTS = 2 * FP32
_USUAL = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
}
"""Elements, where a profile's section does not say."""


@dataclass(frozen=True)
class Sizes:
    """Weights of a model in a phase."""

    parameters: list[int]
    """Elements of every parameter, tied ones once."""
    groups: list[list[int]]
    """Elements of every trainable parameter, by param group of the optimizer."""

    @property
    def trainable(self) -> int:
        """All that trains."""
        return sum(map(sum, self.groups))

    @property
    def largest(self) -> int:
        """Elements of the largest parameter that trains."""
        return max(max(group) for group in self.groups)


@dataclass(frozen=True)
class ZeroMemory:
    """Bytes on one rank's device, unless named otherwise."""

    weights: int
    """The model's weights; under ZeRO-3 a share of them, small ones whole, and those that are gathered at once."""
    optimizer: int
    """fp32 masters and both moments."""
    gradients: int
    """Buffers that exist all the time."""
    step_gradients: int
    """What exists from a step's first backward pass to its end."""
    all_at_once: int
    """What a compiled backward hands over in one go: 16-bit gradients of everything that trains. The tied embedding's
    is added up in fp32 beside them."""
    one_at_a_time: int
    """16-bit gradient of the largest parameter, which eager backward hands over last."""
    buckets: int
    """Communication buffers that exist all the time."""
    step_buckets: int
    """Communication buffers and casts from the first gradient of a backward pass to its end."""
    host: int
    """Host memory of one rank."""
    kept: int = 0
    """Whole weights that stay from forward to backward, which frees them one by one, as gradients come."""

    @property
    def always(self) -> int:
        """What is there while forward runs."""
        return self.weights + self.optimizer + self.gradients + self.buckets


def zero_memory(profile: Profile, sizes: Sizes, num_ranks: int, accumulation: int) -> ZeroMemory:
    """Memory of the optimizer that DeepSpeed builds for ``profile``; a step has ``accumulation`` micro-batches."""
    if profile.zero_stage == 0:
        return _stage0(sizes)
    if profile.is_flat:
        return _flat(profile, sizes, num_ranks, accumulation)
    if profile.zero_stage == 3:
        return _stage3(profile, sizes, num_ranks)
    return _stage2(profile, sizes, num_ranks)


def _stage0(sizes: Sizes) -> ZeroMemory:
    """torch's AdamW on fp32 weights, which are their own masters."""
    gradients = FP32 * sizes.trainable
    return ZeroMemory(
        weights=FP32 * sum(sizes.parameters),
        optimizer=_MOMENTS * sizes.trainable,
        gradients=0,
        step_gradients=gradients,
        all_at_once=gradients,
        one_at_a_time=FP32 * sizes.largest,
        buckets=0,
        step_buckets=gradients,  # flattened to be reduced
        host=0,
    )


def _flat(profile: Profile, sizes: Sizes, num_ranks: int, accumulation: int) -> ZeroMemory:
    width, slices, kept = width_of(profile), profile.zero_stage > 1, 0
    if profile.zero_stage == 3:
        padded = num_ranks * sum(_shares([size for group in sizes.groups for size in group], num_ranks))
        weights = sum(_shares(sizes.parameters, num_ranks))
        if num_ranks > 1:
            weights += _gathered(profile, sizes, num_ranks)
            others = sum(sizes.parameters) - max(sizes.parameters)
            kept = min(_elements(profile, "stage3_max_live_parameters"), others)
    else:
        padded = _padded(sizes, num_ranks)
        weights = sum(sizes.parameters) - sizes.trainable + padded
    bucket, buffers = _buckets(profile)
    of_gradient = width if profile.compiles and num_ranks == accumulation == 1 else FP32
    return ZeroMemory(
        weights=width * weights,
        optimizer=(FP32 + _MOMENTS) * padded // num_ranks,
        gradients=0 if slices else FP32 * padded,
        step_gradients=of_gradient * padded // num_ranks if slices else 0,
        all_at_once=_whole_gradients(profile, sizes),
        one_at_a_time=width * sizes.trainable,  # they wait for the end of the micro-batch
        buckets=0,
        step_buckets=FP32 * buffers * min(bucket, padded) if slices and num_ranks > 1 else 0,
        host=0,
        kept=width * kept,
    )


def _gathered(profile: Profile, sizes: Sizes, num_ranks: int) -> int:
    """Elements of weights that are whole or on their way, and of this rank's shares that are sent."""
    in_all, largest = sum(sizes.parameters), max(sizes.parameters)
    together = min(_elements(profile, "stage3_prefetch_bucket_size"), in_all)
    # What arrives is put in order, beside what is at work until then.
    return max(2 * largest, min(3 * together, 2 * in_all)) + -(-max(largest, together) // num_ranks)


def _elements(profile: Profile, key: str) -> int:
    """A limit of the profile's ZeRO section."""
    return int(profile.config.get("zero_optimization", {}).get(key, _USUAL[key]))


def _stage2(profile: Profile, sizes: Sizes, num_ranks: int) -> ZeroMemory:
    zero, width = profile.config.get("zero_optimization", {}), width_of(profile)
    padded = _padded(sizes, num_ranks)
    partition = padded // num_ranks
    bucket, buffers = _buckets(profile)
    buffers = buffers * bucket if zero.get("contiguous_gradients", True) else 0
    # Slices of the large parameter, one per rank, are sent together until the bucket is full.
    message = max(min(bucket, sizes.trainable), min(sizes.largest, bucket + sizes.largest // num_ranks))
    offloads = profile.offloads_optimizer
    return ZeroMemory(
        weights=width * (sum(sizes.parameters) - sizes.trainable + padded),
        optimizer=0 if offloads else (FP32 + _MOMENTS) * partition,
        gradients=0,
        # Without a cast, whole gradients are kept of every parameter of which the partition has a part.
        step_gradients=FP32 * (partition if profile.bf16 else min(sizes.trainable, partition + sizes.largest)),
        all_at_once=_whole_gradients(profile, sizes),
        one_at_a_time=width * sizes.largest,
        buckets=width * sizes.largest if offloads else 0,
        step_buckets=width * buffers + (width + FP32) * message,
        host=(2 * FP32 + _MOMENTS + width) * partition + width * sizes.largest if offloads else 0,
    )


def _buckets(profile: Profile) -> tuple[int, int]:
    """Elements of a bucket, and how many of them there are."""
    zero = profile.config.get("zero_optimization", {})
    overlaps = zero.get("overlap_comm", profile.zero_stage == 3)
    return _elements(profile, "reduce_bucket_size"), 1 + bool(overlaps)


def _stage3(profile: Profile, sizes: Sizes, num_ranks: int) -> ZeroMemory:
    width, bucket = width_of(profile), _elements(profile, "reduce_bucket_size")
    threshold = _elements(profile, "stage3_param_persistence_threshold")
    shares = sum(_shares(sizes.parameters, num_ranks))
    whole = sum(size for size in sizes.parameters if size < threshold)
    live = max(_elements(profile, "stage3_max_live_parameters"), max(sizes.parameters))
    gathered = min(sum(sizes.parameters), live + _elements(profile, "stage3_prefetch_bucket_size"))
    partition = sum(_shares([size for group in sizes.groups for size in group], num_ranks))
    offloads = profile.offloads_optimizer
    message = max(min(bucket, sizes.trainable), sizes.largest)
    return ZeroMemory(
        weights=width * (shares + whole + gathered),
        optimizer=0 if offloads else (FP32 + _MOMENTS) * partition,
        gradients=0 if offloads else FP32 * partition,
        step_gradients=0,
        all_at_once=_whole_gradients(profile, sizes),
        one_at_a_time=width * sizes.largest,
        buckets=FP32 * bucket,
        step_buckets=2 * FP32 * message,  # cast to fp32 and laid end to end for the reduce-scatter
        host=(3 * FP32 + _MOMENTS) * partition if offloads else 0,  # gradients twice: added up, and to step with
    )


def _shares(sizes: list[int], num_ranks: int) -> list[int]:
    """Elements that a rank holds of each parameter."""
    return [-(-size // num_ranks) for size in sizes]


def _whole_gradients(profile: Profile, sizes: Sizes) -> int:
    """Bytes of ``all_at_once``."""
    return width_of(profile) * sizes.trainable + FP32 * sizes.largest


def width_of(profile: Profile) -> int:
    """Bytes of a weight."""
    return 2 if profile.bf16 else FP32


def _padded(sizes: Sizes, num_ranks: int) -> int:
    """Elements with the padding of every group to equal partitions at 4-byte boundaries."""
    unit = 2 * num_ranks
    return sum(unit * -(-sum(group) // unit) for group in sizes.groups)


def sizes_of(shapes: Shapes, groups: Iterable[WeightGroup]) -> Sizes:
    """Sizes of a model and of what a phase trains, from :func:`hebrew_asr.model.groups.phase_groups`."""
    return Sizes(
        [math.prod(shape) for shape in shapes.values()],
        [[math.prod(shapes[name]) for name in group.weights] for group in groups],
    )
