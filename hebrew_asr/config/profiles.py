"""Hardware profiles: ``ds_configs/*.json``, plain DeepSpeed JSON, checked and joined with a recipe.

A profile says how the work is spread over the hardware: ZeRO stage, offload, precision, communication, micro-batch,
accumulation. What is learned (optimizer, learning rate, clipping, phases) belongs to the recipe and is refused here, so
every number has one owner. Keys that start with ``_`` are notes; ``_hardware`` is read, DeepSpeed never sees it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hebrew_asr.config.recipe import Recipe
from hebrew_asr.config.values import CHECKED, PositiveFloat, PositiveInt, parse, read_object
from hebrew_asr.errors import EnvironmentProblem, UsageError

SHIPPED = Path(__file__).parents[2] / "ds_configs"
"""The checkout's profiles, each of which is known by its name: ``a100x8``."""
REFUSED = {
    "optimizer": "the recipe's optimizer section owns it",
    "scheduler": "the recipe's phases and optimizer.warmup_share own the schedule",
    "gradient_clipping": "the recipe's optimizer.clip_grad_norm owns it",
    "managed_gradient_accumulation": "the trainer sets it",
    "fp16": "Qwen3-ASR trains in bf16 or fp32; fp16 needs loss scaling, which the phase proof does not cover",
    "amp": "use bf16",
    **dict.fromkeys(("wandb", "tensorboard", "comet"), "the recipe's logging section owns it"),
    "csv_monitor": "metrics.jsonl is always written",
    "elasticity": "the effective batch is the same on any rank count already",
    **dict.fromkeys(("data_efficiency", "curriculum_learning"), "the recipe owns the data"),
}


@dataclass(frozen=True)
class Hardware:
    """What a profile was written for."""

    __pydantic_config__ = CHECKED
    accelerator: Literal["cuda", "cpu"] = "cuda"
    num_ranks: PositiveInt = 1
    """Ranks that ``hebrew-asr train`` starts unless told otherwise."""
    memory_gib: PositiveFloat = 80.0
    """Memory of one device."""
    card: str | None = None
    """Which one it is, as ``planning/speeds.json`` calls it: for ``plan``, which tells the time from it."""
    compile: bool | None = None
    """Whether the training step is compiled; on CUDA unless told otherwise."""
    cuda_graphs: bool = False
    """Whether a compiled pass is recorded as CUDA graphs: only under ZeRO-1, 2 and 3 in bf16, without offload, and at
    stage 3 without the other keys that leave it DeepSpeed's own."""


@dataclass(frozen=True)
class DeepSpeedKeys:
    """The keys of DeepSpeed that a profile owns. ``engine/nested_keys.py`` checks what the sections hold."""

    __pydantic_config__ = CHECKED
    train_micro_batch_size_per_gpu: PositiveInt
    """Most clips in a micro-batch."""
    gradient_accumulation_steps: PositiveInt | None = None
    train_batch_size: PositiveInt | None = None
    zero_optimization: dict[str, Any] = field(default_factory=dict)
    zero_force_ds_cpu_optimizer: bool = False
    zero_allow_untested_optimizer: bool = False
    aio: dict[str, Any] = field(default_factory=dict)
    bf16: dict[str, Any] = field(default_factory=dict)
    data_types: dict[Literal["grad_accum_dtype"], Literal["fp32", "bf16", "fp16"] | None] = field(default_factory=dict)
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    prescale_gradients: bool = False
    gradient_predivide_factor: PositiveFloat = 1.0
    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    comms_logger: dict[str, Any] = field(default_factory=dict)
    flops_profiler: dict[str, Any] = field(default_factory=dict)
    dump_state: bool = False


_PLAIN: dict[str, dict[str, type | tuple[str, ...] | dict[str, Any]]] = {
    "bf16": {"enabled": bool},
    "zero_optimization": {
        "stage": int,
        **dict.fromkeys(("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions"), bool),
        **dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "stage3_max_live_parameters"), int),
        **dict.fromkeys(("stage3_max_reuse_distance", "stage3_prefetch_bucket_size"), int),
        **dict.fromkeys(("stage3_param_persistence_threshold", "sub_group_size"), int),
        "stage3_gather_16bit_weights_on_model_save": bool,
        "offload_optimizer": {"device": ("cpu", "none"), "pin_memory": bool},
    },
}
"""Keys of sections that DeepSpeed surely takes, with values of these kinds: no need to ask it, which takes seconds."""


@dataclass(frozen=True)
class Profile:
    """A checked hardware profile."""

    name: str
    source: str
    hardware: Hardware
    config: dict[str, Any]
    """The DeepSpeed keys, without notes."""

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return int(self.config["zero_optimization"]["stage"])

    @property
    def bf16(self) -> bool:
        """Whether weights and activations are bf16 (the masters are fp32 either way)."""
        return bool(self.config.get("bf16", {}).get("enabled", False))

    @property
    def precision(self) -> str:
        """``bf16`` or ``fp32``, as it is spelled to users and in checkpoints."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def accumulates(self) -> bool:
        """Whether a step may have several micro-batches: at stage 0 with bf16 DeepSpeed cannot accumulate in fp32."""
        return self.zero_stage > 0 or not self.bf16

    @property
    def compiles(self) -> bool:
        """Whether the training pass is compiled.

        In fp32 attention on a GPU reads lengths on the host (``passes/attention.py``), which fits into no graph; nor do
        the hooks by which DeepSpeed's own ZeRO-3 gathers weights.
        """
        asked, on_gpu = self.hardware.compile, self.hardware.accelerator == "cuda"
        can = (self.bf16 or not on_gpu) and (self.zero_stage < 3 or self.is_flat)
        return (on_gpu if asked is None else asked) and can

    def rehearses(self, recipe: Recipe) -> bool:
        """Whether a run's phases are tried before its first step, as the recipe asks for."""
        return self.compiles if recipe.rehearse is None else recipe.rehearse

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether the compiled pass is recorded as CUDA graphs; only where the next pass finds no gradients left."""
        return self.compiles and self.hardware.cuda_graphs and self.is_flat

    @property
    def cuts_passes(self) -> bool:
        """Whether a recorded pass is cut in two (``passes/seam.py``). Where ranks share the weights it is not: what is
        gathered below the seam may be read above it.
        """
        return self.uses_cuda_graphs and self.zero_stage < 3

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters and moments live in host memory."""
        return _offloads(self.config)

    @property
    def is_plain(self) -> bool:
        """Whether its sections hold nothing but well-known keys, so that DeepSpeed need not be asked about them."""
        sections = {key: value for key, value in self.config.items() if isinstance(value, dict) and key != "data_types"}
        return _is_plain(sections, _PLAIN)

    @property
    def is_flat(self) -> bool:
        """Whether AdamW runs over flat buffers (``flat/adamw.py``), on gradients that come all at once."""
        can = self.zero_stage in (1, 2) or (self.zero_stage == 3 and not _beyond(self.config))
        return self.bf16 and can and not self.offloads_optimizer


def _beyond(config: dict[str, Any]) -> list[str]:
    """Keys with which stage 3 stays DeepSpeed's own: what they ask for (``offload_param``, say) ours does not have."""
    return [key for key in config["zero_optimization"] if key not in _PLAIN["zero_optimization"]]


def _is_plain(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(key in kind and _is_plain(value[key], kind[key]) for key in value)
    return value in kind if isinstance(kind, tuple) else type(value) is kind and (kind is bool or value > 0)


def load_profile(name: str | Path) -> Profile:
    """Read and check a profile.

    Args:
        name: a file, or the name of a shipped profile: ``a100x8``, from any folder.

    Raises:
        UsageError: the file is missing or not JSON, or some keys are unknown, refused or ``auto``; all at once.
    """
    path = _find(Path(name))
    values = read_object(path, "hardware profile")
    config = {key: value for key, value in values.items() if not key.startswith("_")}
    hardware, problems = parse(Hardware, values.get("_hardware", {}), "_hardware")
    problems += [*_note_problems(values), *_key_problems(config)]
    if hardware is None or problems:
        raise UsageError(f"hardware profile {path}: " + "; ".join(problems))
    return Profile(path.stem, str(path), hardware, config)


def shipped_profiles() -> list[str]:
    """Their names."""
    return sorted(file.stem for file in SHIPPED.glob("*.json"))


def _find(name: Path) -> Path:
    """An existing file, else the shipped profile of that name; the folder ``ds_configs/`` and ``.json`` may be left."""
    if name.is_file():
        return name
    stem = name.name.removesuffix(".json")
    shipped = shipped_profiles()
    if stem in shipped and name.parent in (Path(), Path("ds_configs")):
        return SHIPPED / f"{stem}.json"
    close = difflib.get_close_matches(stem.lower(), shipped, 3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There is: {', '.join(shipped)}" if shipped else ""
    raise UsageError(f"hardware profile not found: {name}. {hint}".rstrip())


def _note_problems(values: dict[str, Any]) -> list[str]:
    notes = [key for key in values if key.startswith("_") and key != "_hardware"]
    misspelled = difflib.get_close_matches("_hardware", notes, 1, cutoff=0.75)
    return [f"unknown key {key} (did you mean _hardware?)" for key in misspelled]


def _key_problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with single keys; if nothing is, what is wrong with their combination."""
    problems = [f"{key} does not belong here: {REFUSED[key]}" for key in config if key in REFUSED]
    automatic = _auto_keys(config)
    problems += [f"{key} is 'auto': give a value, nothing fills it in" for key in automatic]
    owned = {key: value for key, value in config.items() if key not in REFUSED and key not in automatic}
    given = {"train_micro_batch_size_per_gpu": 1, **owned} if automatic else owned
    problems += parse(DeepSpeedKeys, given)[1]
    return problems or _contradictions(config)


def _contradictions(config: dict[str, Any]) -> list[str]:
    """Combinations that DeepSpeed 0.19.8 accepts without a word and that go wrong later."""
    problems = []
    stage = config.get("zero_optimization", {}).get("stage")
    if stage is None:
        problems.append('zero_optimization.stage is missing: write "zero_optimization": {"stage": 1} (or 0, 2 or 3)')
    elif stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        problems.append(f"zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}")
    bf16 = config.get("bf16", {}).get("enabled", False)
    if not isinstance(bf16, bool):
        problems.append(f"bf16.enabled must be true or false, not {bf16!r}")
    if config.get("bf16", {}).get("immediate_grad_update"):
        problems.append("bf16.immediate_grad_update has nothing to add: gradients are taken after every micro-batch")
    accumulation, sent = config.get("data_types", {}).get("grad_accum_dtype"), config.get("communication_data_type")
    if stage == 0 and bf16 and accumulation not in (None, "bf16"):
        problems.append("ZeRO stage 0 with bf16 cannot accumulate in fp32: drop data_types, or use stage 1, 2 or 3")
    for key, given in (("data_types.grad_accum_dtype", accumulation), ("communication_data_type", sent)):
        if not bf16 and given not in (None, "fp32"):
            problems.append(f'{key} must be "fp32" in fp32, or gradients lose what it keeps')
    if bf16:
        if stage != 0 and accumulation != "fp32":
            problems.append('data_types.grad_accum_dtype must be "fp32", or gradients add up in bf16')
        others = _beyond(config) if stage == 3 else []
        if sent != "fp32" and not (sent == "bf16" and stage in (2, 3) and not _offloads(config) and not others):
            told = 'communication_data_type must be "fp32", or gradients are summed over ranks in bf16'
            without = f"{', '.join(others)} and offload" if others else "offload"
            problems.append(
                f"{told}; only owners at ZeRO stages 2 and 3 without {without} sum in fp32 what travels as bf16"
            )
    return problems


def _offloads(config: dict[str, Any]) -> bool:
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def _auto_keys(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _auto_keys(item, f"{path}.{key}" if path else key)]
    return [path] if value == "auto" else []


def check_hardware(profile: Profile, num_ranks: int, num_devices: int) -> None:
    """Raise EnvironmentProblem if this machine lacks the profile's accelerator, or has too few of them."""
    if profile.hardware.accelerator != "cuda":
        return
    if num_devices == 0:
        raise EnvironmentProblem(
            f"hardware profile {profile.source} is for GPUs and this machine shows none; check nvidia-smi "
            f"and CUDA_VISIBLE_DEVICES, or use --ds cpu"
        )
    if num_ranks > num_devices:
        raise EnvironmentProblem(
            f"{num_ranks} ranks were started and this machine shows {num_devices} GPUs; use --num_gpus {num_devices}"
        )
