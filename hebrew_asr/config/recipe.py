"""The recipe: every value that decides what is learned, as typed data. ``config/recipes/round2.json`` is the real one.

What does not decide it, and may change when a run is resumed, is marked beside the field (``Freedom``). Hardware
(sharding, precision, micro-batch, communication) belongs to ``ds_configs/*.json``, see ``config/profiles.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hebrew_asr.config.values import (
    CHECKED,
    Before,
    Count,
    Freedom,
    PositiveFloat,
    PositiveInt,
    Share,
    completed,
    flatten,
    free_keys,
    override_value,
    parse,
    read_object,
    value_text,
)
from hebrew_asr.errors import UsageError, did_you_mean

RECIPES_DIR = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Model:
    """Where the weights start."""

    __pydantic_config__ = CHECKED
    path: Annotated[str, Freedom.PLACE] = "Qwen/Qwen3-ASR-1.7B"
    """Hub id or local folder, in the thinker layout or the native one. A checkpoint knows which weights were in it."""
    random_weights: bool = False
    """Ignore (or do without) the weights in ``path`` and draw them from ``seed``: for benchmarks and tests."""


@dataclass(frozen=True)
class Data:
    """Where the clips are."""

    __pydantic_config__ = CHECKED
    folder: Annotated[str, Freedom.PLACE] = "qwen3_asr_round2_data"
    """Folder with ``train.jsonl`` and ``eval.jsonl``, here or at a URL (s3://bucket/set)."""
    cache_gib: Annotated[float, Field(ge=0, le=1e6), Freedom.PLACE] = 100.0
    """Sound of sets at URLs that a machine keeps in ~/.cache, at most; a twentieth of the disk stays free."""
    prepare: Annotated[bool, Freedom.PLACE] = False
    """Make a folder on this machine from the ivrit.ai corpora first when it is missing, once per node."""
    workers: Annotated[int, Field(ge=0, le=256), Freedom.PLACE] = 4
    """DataLoader workers per rank; 0 decodes in the training process."""
    max_duration_s: Annotated[float, Field(gt=0, le=1200)] = 30.0
    """A longer training clip stops the run before it starts, and no clip is slowed down until it is longer: the encoder
    was trained on 30 s at most."""
    allow_outside: Annotated[bool, Freedom.PLACE] = False
    """Accept audio files outside the folder, as manifests of other tools name them."""
    weights: Annotated[dict[str, dict[str, PositiveFloat]], Before({})] = field(default_factory=dict)
    """By phase, the weight of each data set: its share of an epoch, by the others'. A clip's data set is its id up to
    the first slash, as ``prepare`` names sources; one without weight takes no part. An epoch has as many steps as
    without weights. A data set gives all of its clips, in a new order each time, before one comes again, through all
    epochs of the phase, and a clip is augmented anew each time."""
    temperature: Annotated[dict[str, Annotated[float, Field(ge=1, le=1000)]], Before({})] = field(default_factory=dict)
    """By phase, instead of weights: a data set of n clips weighs n ** (1 / temperature). At 1 each clip comes once an
    epoch; the higher, the more alike are the shares of large and small sets."""


@dataclass(frozen=True)
class Augmentation:
    """Speed perturbation and SpecAugment, on training clips only; seeded by (seed, epoch, clip id), and how often
    the clip came before in the epoch."""

    __pydantic_config__ = CHECKED
    speed_factors: Annotated[tuple[Annotated[float, Field(ge=0.5, le=2)], ...], Field(min_length=1)] = (0.9, 1.0, 1.1)
    """One is drawn per clip and epoch; 1.1 is faster and higher, by resampling (Ko et al. 2015). A factor that would
    make a clip longer than ``data.max_duration_s`` is not drawn for it: with 30 s, no 0.9 above 27 s."""
    num_freq_masks: Annotated[int, Field(ge=0, le=1000)] = 2
    """Frequency masks per clip (SpecAugment, arXiv 1904.08779)."""
    max_freq_width_bins: Annotated[int, Field(ge=0, le=128)] = 27
    """Widest frequency mask, of 128 mel bins."""
    num_time_masks: Annotated[int, Field(ge=0, le=1000)] = 2
    """Time masks per clip."""
    max_time_width_s: Annotated[float, Field(ge=0, le=1200)] = 1.0
    """The widest time mask in seconds; ``max_time_share`` limits it too."""
    max_time_share: Share = 0.15
    """The widest time mask as a share of the clip, so that a clip of 1 s keeps most of itself."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which one set of module groups trains."""

    __pydantic_config__ = CHECKED
    name: Annotated[str, Field(min_length=1)]
    """Short name, as in the metrics: ``B``, ``A``."""
    title: Annotated[str, Freedom.CONDUCT]
    """Printed when the phase starts."""
    epochs: PositiveInt
    """Whole epochs it lasts."""
    learning_rates: Annotated[dict[str, Annotated[float, Field(ge=1e-12, le=1)]], Field(min_length=1)]
    """Learning rate of each module group that trains, which the schedule multiplies; groups not named are frozen. A
    group that trained in the phase before must be named again.

    The schedule falls over the whole run, so a later phase stays below what stands here: round2's phase A begins at
    61 % of it. The start of a run prints the highest rates that it will take. What a group holds is said in ``GROUPS``
    of ``model/groups.py``; ``head`` is the input embedding too, since Qwen3-ASR ties the two.
    """


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule."""

    __pydantic_config__ = CHECKED
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    """Above 0 in fp32 too: AdamW divides by it where a weight has had no gradient."""
    weight_decay: Share = 0.01
    """Decoupled decay; norms and biases have none, nor has the head while ``absent_tokens`` is frozen."""
    absent_tokens: Annotated[Literal["frozen", "trained"], Before("trained")] = "frozen"
    """Rows of the head, so of the input embedding, whose tokens occur in no training target or prompt. ``trained``
    moves them all by full steps of AdamW, since softmax gives each a gradient: in the demo their norm grew from 0.56
    to 2.6, that of the rows in use to 0.98. ``frozen`` zeroes that gradient, and they stay bit-equal. The demo, which
    begins at random weights and has nothing to keep, trains them, and hears better for it."""
    clip_grad_norm: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    """Global gradient norm above which gradients are scaled down."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of all steps over which the learning rate rises linearly; it then falls linearly to 0."""
    join_warmup_steps: Count = 100
    """Steps over which a group that joins at a later phase rises to its own learning rate."""


@dataclass(frozen=True)
class Evaluation:
    """WER and CER while training."""

    __pydantic_config__ = CHECKED
    every_steps: PositiveInt = 500
    """Steps between evaluations on the sample."""
    sample_clips: PositiveInt = 100
    """Clips of the sample, spread evenly over durations; the same ones each time."""
    batch_clips: PositiveInt | None = None
    """Clips decoded together on a rank; if not given, as many as a tenth of a GPU's memory holds, or 32 on a CPU."""
    at_start: bool = True
    """Also measure before the first step: the base model's own WER."""
    full_each_epoch: bool = True
    """Decode the whole eval split at each epoch's end."""
    choose_final: bool = True
    """Make the best on the whole eval split the final model: last, best checkpoint or mean of the kept ones. It costs
    up to two more evaluations, and is left out without ``full_each_epoch`` and where ``max_steps`` ends the run."""
    wer_mode: Literal["strict", "ivrit", "lenient"] = "strict"
    """Normalizer in which WER and CER are counted."""
    max_tokens_per_s: Annotated[float, Field(gt=0, le=1000)] = 12.0
    """Cap of generated tokens by audio length (Hebrew needs about 5 a second), plus ``min_new_tokens``."""
    min_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    """Generated tokens allowed to the shortest clip."""


@dataclass(frozen=True)
class Checkpoints:
    """What is kept for resuming."""

    __pydantic_config__ = CHECKED
    every_steps: PositiveInt = 500
    """Steps between checkpoints."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_best: Count = 1
    """Checkpoints with the lowest WER kept besides."""
    background: bool = True
    """Write files in a thread; training waits only while the state is copied to host memory."""


@dataclass(frozen=True)
class Faults:
    """How much may go wrong before a run gives up."""

    __pydantic_config__ = CHECKED
    non_finite_patience: Count = 5
    """Steps in a row that may be skipped for a NaN or infinite gradient; one more stops the run."""
    max_unreadable_share: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Share of the training clips that may turn out undecodable and be skipped; 0 in a set of under 1,000 clips."""


@dataclass(frozen=True)
class Logging:
    """Where the numbers go besides ``metrics.jsonl``."""

    __pydantic_config__ = CHECKED
    every_steps: PositiveInt = 10
    """Steps between writes. Each has its record; they are written together: reading a loss waits for the device."""
    wandb: bool = True
    """Log to Weights & Biases; offline when there is no login."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, into ``tensorboard/`` of the run directory."""
    report: bool = True
    """Write the run's ``report.html`` anew while it trains: after evaluations, and at most every 30 s."""
    price_per_hour: PositiveFloat | None = None
    """What all machines of the run cost together, in any currency, for the cost so far."""


@dataclass(frozen=True)
class Recipe:
    """One training run, whole."""

    __pydantic_config__ = CHECKED
    name: Annotated[str, Field(min_length=1), Freedom.CONDUCT]
    phases: Annotated[list[Phase], Field(min_length=1)]
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seeds weights that are drawn, the order of clips and the augmentation."""
    clips_per_step: Annotated[int, Field(ge=1, le=65536)] = 64
    """Effective batch: clips per optimizer step, on any number of ranks."""
    unfrozen_layers: dict[Literal["llm_top", "audio_top"], PositiveInt] = field(
        default_factory=lambda: {"llm_top": 12, "audio_top": 8}
    )
    """How many layers ``llm_top`` and ``audio_top`` hold, counted from the top."""
    rehearse: Annotated[bool | None, Freedom.CONDUCT] = None
    """Try every phase before the first step of a run. By default where the pass is compiled, as in bf16 on GPUs."""
    max_steps: Annotated[PositiveInt | None, Freedom.CONDUCT] = None
    """Stop after this many steps, whatever the epochs; the schedule still spans all of them."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Annotated[Evaluation, Freedom.CONDUCT] = field(default_factory=Evaluation)
    checkpoints: Annotated[Checkpoints, Freedom.CONDUCT] = field(default_factory=Checkpoints)
    faults: Annotated[Faults, Freedom.CONDUCT] = field(default_factory=Faults)
    logging: Annotated[Logging, Freedom.CONDUCT] = field(default_factory=Logging)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def steps_per_epoch(self, num_clips: int) -> int:
        """Optimizer steps per epoch; the last one takes what is left."""
        return math.ceil(num_clips / self.clips_per_step)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``a.b=value`` overrides (values are JSON, or plain text).

    Args:
        name_or_path: a file, or the name of a shipped recipe (``round2``, ``full``).
        overrides: as given to ``--set``.

    Raises:
        UsageError: no such recipe, or anything in it that is unknown, of a wrong type or impossible; all at once.
    """
    path, shipped = Path(name_or_path), {file.stem: file for file in sorted(RECIPES_DIR.glob("*.json"))}
    if not path.is_file():
        if name_or_path not in shipped:
            hint = did_you_mean(name_or_path.removesuffix(".json"), shipped)
            raise UsageError(
                f"recipe not found: {name_or_path}{hint}. Give a JSON file, or one of {', '.join(shipped)}"
            )
        path = shipped[name_or_path]
    values = read_object(path, "recipe")
    for override in overrides or []:
        override_value(values, override)
    return recipe_from_dict(values, f"{path} with --set" if overrides else str(path))


def recipe_from_dict(values: dict[str, Any], source: str) -> Recipe:
    """Check plain values and build the recipe.

    Raises:
        UsageError: naming every problem found, with the dotted path of each.
    """
    recipe, problems = parse(Recipe, values)
    if recipe is not None:
        names = [phase.name for phase in recipe.phases]
        problems = [f"two phases are called {name}" for name in sorted(set(names)) if names.count(name) > 1]
        problems += _leavers(recipe) + _mixed(recipe)
    if recipe is None or problems:
        raise UsageError(f"recipe {source}: " + "; ".join(problems))
    return recipe


def changes(before: dict[str, Any], now: Recipe, *, counted: Collection[str] = ()) -> list[str]:
    """How a recipe differs from the one that a run was made by, in what decides what is learned: a text for each key.

    Args:
        before: plain values, as in ``recipe.json`` and ``state.json``.
        now: the recipe that is to go on with the run.
        counted: keys that count here although they decide nothing.
    """
    free = free_keys(Recipe, *Freedom) - set(counted)
    was, wanted = flatten(completed(Recipe, before), free), flatten(now.to_dict(), free)
    return [
        f"{key}: {value_text(was, key)} in the run, {value_text(wanted, key)} now"
        for key in sorted(was.keys() | wanted.keys())
        if (key in was, was.get(key)) != (key in wanted, wanted.get(key))
    ]


def as_begun(now: Recipe, before: dict[str, Any] | None) -> Recipe:
    """``now``, with what a run does that was begun before one of its keys existed: that run goes on as it began."""
    if before is None:
        return now
    values, written = now.to_dict(), flatten(before)
    for key, value in flatten(completed(Recipe, before)).items():
        if key not in written:
            *sections, name = key.split(".")
            reduce(getitem, sections, values)[name] = value
    return recipe_from_dict(values, now.name)


def _leavers(recipe: Recipe) -> list[str]:
    """Groups that train in one phase and not in the next: their optimizer state would have nowhere to be."""
    return [
        f"phase {after.name} leaves out {group}{did_you_mean(group, after.learning_rates)}, which phase {before.name} "
        "trains: groups may join, but not leave"
        for before, after in pairwise(recipe.phases)
        for group in before.learning_rates
        if group not in after.learning_rates
    ]


def _mixed(recipe: Recipe) -> list[str]:
    """What is wrong with the phases that weights and temperatures are for."""
    names, by_phase = {phase.name for phase in recipe.phases}, (recipe.data.weights, recipe.data.temperature)
    unknown = sorted({*by_phase[0], *by_phase[1]} - names)
    return [
        *(f"data.weights and data.temperature name a phase {name}{did_you_mean(name, names)}" for name in unknown),
        *(
            f"phase {name} has data.weights and data.temperature: give one"
            for name in by_phase[0]
            if name in by_phase[1]
        ),
        *(f"data.weights.{name} names no data set" for name, weights in by_phase[0].items() if not weights),
    ]
