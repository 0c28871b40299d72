"""The recipe: every value that decides what is learnt, as typed data. ``recipes/round2.json`` is the real one.

Hardware (sharding, precision, micro-batch, communication) belongs to ``ds_configs/*.json``, see ``profiles.py``.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hebrew_asr.errors import UsageError

RECIPES_DIR = Path(__file__).parent / "recipes"
_STRICT = ConfigDict(extra="forbid", strict=False)


@dataclass(frozen=True)
class Model:
    """Where the weights start."""

    __pydantic_config__ = _STRICT
    path: str = "Qwen/Qwen3-ASR-1.7B"
    """Hub id or local folder, in the thinker layout or the native one."""
    random_weights: bool = False
    """Ignore (or do without) the weights in ``path`` and draw them from ``seed``: for benchmarks and tests."""


@dataclass(frozen=True)
class Data:
    """Where the clips are."""

    __pydantic_config__ = _STRICT
    folder: str = "qwen3_asr_round2_data"
    """Folder with ``train.jsonl`` and ``eval.jsonl``."""
    prepare: bool = False
    """Make the folder from the ivrit.ai corpora first when it is missing, once a node."""
    workers: int = 4
    """Loader processes a rank; 0 decodes in the training process."""
    max_duration_s: float = 30.0
    """Longer training clips stop the run before it starts; the encoder was trained on 30 s at most."""
    allow_outside: bool = False
    """Accept manifest paths that leave their folder."""


@dataclass(frozen=True)
class Augmentation:
    """Speed perturbation and SpecAugment, on training clips only; seeded by (seed, epoch, clip id)."""

    __pydantic_config__ = _STRICT
    speed_factors: tuple[float, ...] = (0.9, 1.0, 1.1)
    """One is drawn a clip; 1.1 is faster and higher, by resampling (Ko et al. 2015)."""
    num_freq_masks: int = 2
    """Frequency masks a clip (SpecAugment, arXiv 1904.08779)."""
    max_freq_width_bins: int = 27
    """Widest frequency mask, of 128 mel bins."""
    num_time_masks: int = 2
    """Time masks a clip."""
    max_time_width_s: float = 1.0
    """Widest time mask in seconds …"""
    max_time_share: float = 0.15
    """… and as a share of the clip, whichever is less: a 1 s clip keeps most of itself."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which one set of module groups trains."""

    __pydantic_config__ = _STRICT
    name: str
    """Short name, as in the metrics: ``B``, ``A``."""
    title: str
    """Printed when the phase starts."""
    epochs: int
    """Whole epochs it lasts."""
    learning_rates: dict[str, float]
    """Peak learning rate of each module group that trains; groups not named are frozen. A group that trained in the
    phase before must be named again."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule."""

    __pydantic_config__ = _STRICT
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay; norms and biases have none."""
    clip_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    warmup_share: float = 0.02
    """Share of all steps over which the learning rate rises linearly; it then falls linearly to 0."""
    join_warmup_steps: int = 100
    """Steps over which a group that joins at a later phase rises to its own learning rate."""


@dataclass(frozen=True)
class Evaluation:
    """WER and CER while training."""

    __pydantic_config__ = _STRICT
    every_steps: int = 500
    """Steps between evaluations on the sample."""
    sample_clips: int = 100
    """Clips of the sample, spread evenly over durations; the same ones each time."""
    batch_clips: int = 32
    """Clips decoded together on a rank."""
    at_start: bool = True
    """Also measure before the first step: the base model's own WER."""
    full_each_epoch: bool = True
    """Decode the whole eval split at each epoch's end."""
    wer_mode: Literal["strict", "ivrit", "lenient"] = "strict"
    """Normaliser in which WER and CER are counted."""
    max_tokens_per_s: float = 12.0
    """Cap of generated tokens by audio length (Hebrew needs about 5 a second), plus ``min_new_tokens``."""
    min_new_tokens: int = 16
    """Generated tokens allowed to the shortest clip."""


@dataclass(frozen=True)
class Checkpoints:
    """What is kept for resuming."""

    __pydantic_config__ = _STRICT
    every_steps: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints with the lowest WER kept besides."""
    background: bool = True
    """Write while training goes on; it waits only for the copy to host memory."""


@dataclass(frozen=True)
class Faults:
    """How much may go wrong before a run gives up."""

    __pydantic_config__ = _STRICT
    non_finite_patience: int = 5
    """Steps in a row that may be skipped for a NaN or infinite gradient; one more stops the run."""
    max_unreadable_share: float = 0.001
    """Share of the training clips that may turn out undecodable and be skipped; 0 in a set of under 1,000 clips."""


@dataclass(frozen=True)
class Logging:
    """Where the numbers go besides ``metrics.jsonl``."""

    __pydantic_config__ = _STRICT
    every_steps: int = 10
    """Steps between writes; there is a record of every step, but reading a loss off the device waits for it."""
    wandb: bool = True
    """Log to Weights & Biases; offline when there is no login."""


@dataclass(frozen=True)
class Recipe:
    """One training run, whole."""

    __pydantic_config__ = _STRICT
    name: str
    phases: list[Phase]
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    seed: int = 42
    """Seeds weights that are drawn, the order of clips and the augmentation."""
    clips_per_step: int = 64
    """Effective batch: clips an optimizer step, on any number of ranks."""
    unfrozen_layers: dict[str, int] = field(default_factory=lambda: {"llm_top": 12, "audio_top": 8})
    """How many layers ``llm_top`` and ``audio_top`` hold, counted from the top."""
    max_steps: int | None = None
    """Stop after this many steps, whatever the epochs; the schedule still spans all of them."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    faults: Faults = field(default_factory=Faults)
    logging: Logging = field(default_factory=Logging)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def phase_of_epoch(self, epoch: int) -> int:
        """Index of the phase that ``epoch`` (from 0) belongs to."""
        end = 0
        for index, phase in enumerate(self.phases):
            end += phase.epochs
            if epoch < end:
                return index
        return len(self.phases) - 1

    def steps_per_epoch(self, num_clips: int) -> int:
        """Optimizer steps an epoch; the last one takes what is left."""
        return math.ceil(num_clips / self.clips_per_step)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``a.b=value`` overrides (values are JSON, or plain text).

    Args:
        name_or_path: a file, or the name of a shipped recipe (``round2``, ``demo``).
        overrides: as given to ``--set``.

    Raises:
        UsageError: no such recipe, or anything in it that is unknown, of a wrong type or impossible; all at once.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.is_file():
        path = RECIPES_DIR / f"{name_or_path}.json"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in RECIPES_DIR.glob("*.json")))
        raise UsageError(f"recipe not found: {name_or_path}. Give a JSON file or one of: {shipped}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"recipe {path} is not JSON: {error}") from error
    for override in overrides or []:
        _override(values, override)
    return recipe_from_dict(values, str(path))


def recipe_from_dict(values: dict[str, Any], source: str) -> Recipe:
    """Check plain values and build the recipe.

    Raises:
        UsageError: naming every problem found, with the dotted path of each.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        problems = [_describe(item) for item in error.errors()]
        raise UsageError(f"recipe {source}: " + "; ".join(problems)) from error
    problems = _impossible(recipe)
    if problems:
        raise UsageError(f"recipe {source}: " + "; ".join(problems))
    return recipe


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value, for example --set optimizer.weight_decay=0.1, not {override!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    node: Any = values
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict | list):
            raise UsageError(f"--set {key}: {part} is a value, it has no parts")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UsageError(f"--set {key}: no element {last}")


def _describe(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        close = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(item["loc"][:-1]), 1)
        return f"unknown key {where}" + (f" (did you mean {close[0]}?)" if close else "")
    if item["type"] in ("missing", "missing_argument"):
        return f"{where} is missing"
    return f"{where}: {item['msg']}, got {item['input']!r}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """Field names of the dataclass that ``location`` leads to, for suggestions."""
    current: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        hint = get_type_hints(current).get(str(part))
        current = Phase if part == "phases" else hint
        if not is_dataclass(current):
            return []
    return [f.name for f in fields(current)]


def _impossible(recipe: Recipe) -> list[str]:
    """Cross-field checks on values of the right type."""
    optimizer, augment = recipe.optimizer, recipe.augmentation
    checks = [
        (bool(recipe.phases), "phases is empty"),
        (all(phase.epochs > 0 for phase in recipe.phases), "every phase needs at least one epoch"),
        (all(phase.learning_rates for phase in recipe.phases), "every phase needs a group to train"),
        (len({phase.name for phase in recipe.phases}) == len(recipe.phases), "two phases have the same name"),
        (
            all(rate > 0 for phase in recipe.phases for rate in phase.learning_rates.values()),
            "learning_rates must be above 0; leave a group out to freeze it",
        ),
        (recipe.clips_per_step >= 1, "clips_per_step must be at least 1"),
        (recipe.max_steps is None or recipe.max_steps >= 1, "max_steps must be at least 1"),
        (all(count >= 1 for count in recipe.unfrozen_layers.values()), "unfrozen_layers must be at least 1 each"),
        (0 <= optimizer.beta1 < 1 and 0 <= optimizer.beta2 < 1, "optimizer betas must lie in [0, 1)"),
        (optimizer.clip_grad_norm > 0, "optimizer.clip_grad_norm must be above 0"),
        (0 <= optimizer.warmup_share < 1, "optimizer.warmup_share must lie in [0, 1)"),
        (
            bool(augment.speed_factors) and all(0.5 <= factor <= 2 for factor in augment.speed_factors),
            "augmentation.speed_factors must lie in [0.5, 2]",
        ),
        (0 <= augment.max_freq_width_bins <= 128, "augmentation.max_freq_width_bins must lie in [0, 128]"),
        (0 <= augment.max_time_share <= 1, "augmentation.max_time_share must lie in [0, 1]"),
        (recipe.evaluation.every_steps >= 1, "evaluation.every_steps must be at least 1"),
        (recipe.evaluation.sample_clips >= 1, "evaluation.sample_clips must be at least 1"),
        (recipe.checkpoints.every_steps >= 1, "checkpoints.every_steps must be at least 1"),
        (recipe.checkpoints.keep_last >= 1, "checkpoints.keep_last must be at least 1"),
        (recipe.faults.non_finite_patience >= 0, "faults.non_finite_patience must be 0 or more"),
        (0 <= recipe.faults.max_unreadable_share < 1, "faults.max_unreadable_share must lie in [0, 1)"),
        (recipe.logging.every_steps >= 1, "logging.every_steps must be at least 1"),
        (recipe.data.workers >= 0, "data.workers must be 0 or more"),
    ]
    return [message for holds, message in checks if not holds] + _leavers(recipe)


def _leavers(recipe: Recipe) -> list[str]:
    """Groups that train in one phase and not in the next: their optimizer state would have nowhere to be."""
    return [
        f"phase {after.name} leaves out {group}, which phase {before.name} trains: groups may join, but not leave"
        for before, after in pairwise(recipe.phases)
        for group in before.learning_rates
        if group not in after.learning_rates
    ]
