"""Hardware profiles: every shipped one makes the effective batch; what a recipe owns is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hebrew_asr.config.batching import deepspeed_config, derive_batching
from hebrew_asr.config.profiles import check_hardware, load_profile
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.errors import EnvironmentProblem, UsageError
from hebrew_asr.planning.clock import run_clock
from hebrew_asr.planning.plan import make_plan

PROFILES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
ROUND2 = load_recipe("round2")


def test_the_promised_profiles_are_there():
    promised = {"a100x8", "a100x8-40gb-zero3", "a100x2", "h200x1", "h200x4", "rtx4090x1", "a10gx4", "cpu"}
    promised |= {"a100x1", "h100x8", "h200x8", "l40sx8"}
    assert promised <= {path.stem for path in PROFILES}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("ranks", [None, 1, 2, 3, 5, 8])
def test_shipped_profiles_make_64_clips_on_any_rank_count(path, ranks):
    profile = load_profile(path)
    batching = derive_batching(profile, ROUND2, ranks or profile.hardware.num_ranks)
    room = batching.max_micro_batch * batching.accumulation * batching.num_ranks
    assert batching.clips_per_step == 64 <= room
    assert room - batching.max_micro_batch * batching.num_ranks < 64, "one micro-batch fewer would have done"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_deepspeed_takes_what_is_made_of_a_shipped_profile(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    profile = load_profile(path)
    batching = derive_batching(profile, ROUND2, 1)
    parsed = DeepSpeedConfig(deepspeed_config(profile, ROUND2, batching))
    assert parsed.zero_config.stage == profile.zero_stage
    assert parsed.gradient_clipping == ROUND2.optimizer.clip_grad_norm
    assert parsed.bfloat16_config.enabled == profile.bf16
    assert profile.name.startswith("cpu") or profile.bf16


def write(folder: Path, **values) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}, **values}))
    return path


def test_contradicting_batch_is_told_with_its_arithmetic(tmp_path):
    profile = load_profile(write(tmp_path, gradient_accumulation_steps=3))
    with pytest.raises(UsageError, match=r"4 × 3 × 8 ranks = 96 .* set it to 2"):
        derive_batching(profile, ROUND2, 8)
    assert derive_batching(load_profile(write(tmp_path, gradient_accumulation_steps=2)), ROUND2, 8).accumulation == 2
    with pytest.raises(UsageError, match="train_batch_size 128"):
        derive_batching(load_profile(write(tmp_path, train_batch_size=128)), ROUND2, 8)


def test_more_ranks_than_clips_is_refused(tmp_path):
    with pytest.raises(UsageError, match="65 ranks cannot share 64"):
        derive_batching(load_profile(write(tmp_path)), ROUND2, 65)


def test_stage_0_in_bf16_takes_a_step_in_one_micro_batch(tmp_path):
    """DeepSpeed has no fp32 accumulation there."""
    values = {"bf16": {"enabled": True}, "communication_data_type": "fp32", "zero_optimization": {"stage": 0}}
    profile = load_profile(write(tmp_path, **values, data_types={}, train_micro_batch_size_per_gpu=16))
    with pytest.raises(UsageError, match=r"makes 2 micro-batches a step.*add up in bf16.*of at least 32"):
        derive_batching(profile, ROUND2, 2)
    assert derive_batching(profile, ROUND2, 4).accumulation == 1


def test_halves_keep_the_effective_batch(tmp_path):
    batching = derive_batching(load_profile(write(tmp_path, train_micro_batch_size_per_gpu=64)), ROUND2, 4)
    sizes = []
    while batching is not None:
        sizes.append((batching.max_micro_batch, batching.accumulation))
        assert batching.clips_per_step == 64
        batching = batching.halved()
    assert sizes == [(64, 1), (8, 2), (4, 4), (2, 8), (1, 16)]


SENDS_BF16 = {"bf16": {"enabled": True}, "communication_data_type": "bf16"}
OFFLOADS = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"optimizer": {"type": "AdamW"}}, "optimizer does not belong here"),
        ({"gradient_clipping": 1.0}, "clip_grad_norm owns it"),
        ({"gradient_cliping": 1.0}, "unknown key gradient_cliping"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage is 'auto'"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "train_micro_batch_size_per_gpu is 'auto'"),
        ({"zero_optimization": {"stage": 7}}, "must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"overlap_comm": True}}, r'stage is missing: write "zero_optimization": \{"stage": 1\}'),
        ({"bf16": {"enabled": True}}, "gradients add up in bf16"),
        (
            {**SENDS_BF16, "zero_optimization": {"stage": 1}},
            "over ranks in bf16; only owners at ZeRO stages 2 and 3",
        ),
        ({**SENDS_BF16, "zero_optimization": {"stage": 2, **OFFLOADS}}, "summed over ranks in bf16; only owners"),
        (
            {**SENDS_BF16, "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}},
            "in bf16; only owners at .* without zero_hpz_partition_size and offload sum in fp32",
        ),
        (
            {
                "bf16": {"enabled": True},
                "zero_optimization": {"stage": 0},
                "data_types": {"grad_accum_dtype": "fp32"},
            },
            "stage 0 with bf16 cannot accumulate in fp32",
        ),
        ({"_hardware": {"num_gpus": 8}}, "unknown key _hardware.num_gpus .did you mean num_ranks"),
        ({"_hardware": {"accelerator": "gpu"}}, "_hardware.accelerator must be 'cuda' or 'cpu', not 'gpu'"),
        ({"_hardware": {"compile": "false"}}, "_hardware.compile must be true or false, not 'false'"),
        ({"_hardwear": {"accelerator": "cpu"}}, "unknown key _hardwear .did you mean _hardware"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu must be at least 1, not 0"),
        ({"zero_optimization": [2]}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": True}}, "must be 0, 1, 2 or 3, not True"),
        ({"bf16": {"enabled": "no"}}, "bf16.enabled must be true or false, not 'no'"),
        ({"communication_data_type": "fp16"}, 'communication_data_type must be "fp32" in fp32'),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, 'data_types.grad_accum_dtype must be "fp32" in fp32'),
    ],
)
def test_traps_are_refused(tmp_path, values, told):
    with pytest.raises(UsageError, match=told):
        load_profile(write(tmp_path, **values))


def test_a_profile_without_zero_is_refused_by_name(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 4}')
    with pytest.raises(UsageError, match=rf'{path}: zero_optimization.stage is missing: write .*\{{"stage": 1\}}'):
        load_profile(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"zero_optimization": {"reduce_bucket_sise": 5}}, "zero_optimization.reduce_bucket_sise .*reduce_bucket_size"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, "zero_optimization.reduce_bucket_size must be above 0"),
        ({"zero_optimization": {"allgather_bucket_size": float("nan")}}, "finite number, not nan"),
        ({"zero_optimization": {"stage": 3, "prefetch_bucket": 5}}, "prefetch_bucket .*stage3_prefetch_bucket_size"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu", "pin_memry": True}}},
            "offload_optimizer.device must be 'none', 'cpu' or 'nvme'.*offload_optimizer.pin_memry .*pin_memory",
        ),
        ({"bf16": {"enable": False}}, r"bf16.enable \(did you mean enabled"),
        ({"aio": {"block_size": -5}}, "aio.block_size must be of the kind of DeepSpeed's 1048576, not -5"),
        ({"aio": {"block_sise": 5}}, "aio.block_sise .*block_size"),
        ({"flops_profiler": {"profile_step": "1"}}, "flops_profiler.profile_step must be"),
        ({"flops_profiler": {"profile_steps": 1}}, "flops_profiler.profile_steps .*profile_step"),
        ({"comms_logger": {"enabledd": True}}, "comms_logger.enabledd .*enabled"),
        ({"zero_optimization": {"reduce_bucket_size": True}}, "zero_optimization.reduce_bucket_size must be a number"),
        ({"zero_optimization": {"reduce_bucket_size": "500"}}, "reduce_bucket_size must be a number, not '500'"),
        ({"zero_optimization": {"reduce_bucket_size": 10**18}}, "reduce_bucket_size must be at most 68719476736"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "zero_optimization.overlap_comm must be true or false, not"),
        ({"zero_optimization": OFFLOADS | {"cpu_offload": True}}, "cpu_offload is of an older.*offload_optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": "1"}}}, "offload_optimizer.ratio must be a number"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "zero_optimization: Partial offloading only"),
    ],
)
def test_nested_keys_are_held_to_deepspeeds_own_models(tmp_path, values, told):
    from hebrew_asr.engine.nested_keys import check_nested_keys

    values["zero_optimization"] = {"stage": 2, **values.get("zero_optimization", {})}
    profile = load_profile(write(tmp_path, **values))
    with pytest.raises(UsageError, match=told):
        check_nested_keys(profile)


def test_whole_numbers_may_be_written_as_deepspeeds_guides_do(tmp_path):
    from hebrew_asr.engine.nested_keys import check_nested_keys

    section = {"stage": 2, "reduce_bucket_size": 5e8, "offload_optimizer": {"device": "cpu", "ratio": 1}}
    check_nested_keys(load_profile(write(tmp_path, zero_optimization=section)))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_nest_well(path):
    from hebrew_asr.engine.nested_keys import check_nested_keys

    check_nested_keys(load_profile(path))


def test_what_is_called_plain_deepspeed_takes(tmp_path):
    """``plan`` does not ask DeepSpeed about such profiles."""
    from hebrew_asr.config import profiles
    from hebrew_asr.engine.nested_keys import check_nested_keys

    def samples(kind):
        if isinstance(kind, dict):
            return [{key: value} for key in kind for value in samples(kind[key])]
        return list(kind) if isinstance(kind, tuple) else [False, True] if kind is bool else [1, 3, 10**9]

    for section in samples(profiles._PLAIN["zero_optimization"]):
        if section.get("stage", 0) <= 3:
            profile = load_profile(write(tmp_path, zero_optimization={"stage": 2, **section}))
            assert profile.is_plain
            check_nested_keys(profile)
    assert all(load_profile(path).is_plain for path in PROFILES)
    for section in (
        {"overlap_com": True},
        {"overlap_comm": 1},
        {"offload_optimizer": {"device": "nvme"}},
        {"sub_group_size": 0},
        {"reduce_bucket_size": -1},
        {"offload_optimizer": None},
    ):
        assert not load_profile(write(tmp_path, zero_optimization={"stage": 2, **section})).is_plain
    assert not load_profile(write(tmp_path, flops_profiler={"enabled": True})).is_plain


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", r"must hold a JSON object, not \[1\]"),
        ('"x"', "must hold a JSON object"),
        ('{"bf16": {}, "bf16": {}}', "bf16 is given twice"),
        ("[" * 100_000, "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_a_file_that_is_no_profile_is_one_line(tmp_path, text, told):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UsageError, match=told):
        load_profile(tmp_path / "odd.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_profile_is_read_as_editors_of_windows_save_it(tmp_path, encoding):
    (tmp_path / "mine.json").write_text(PROFILES[0].read_text(encoding="utf-8"), encoding=encoding)
    assert load_profile(tmp_path / "mine.json").config == load_profile(PROFILES[0]).config


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UsageError, match="not found"):
        load_profile(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"zero_optimization": ')
    with pytest.raises(UsageError, match="is not JSON"):
        load_profile(tmp_path / "half.json")


def test_gpu_profile_needs_gpus():
    profile = load_profile(next(path for path in PROFILES if path.stem == "a100x8"))
    with pytest.raises(EnvironmentProblem, match=r"for GPUs and this machine shows none.*--ds cpu"):
        check_hardware(profile, 8, 0)
    with pytest.raises(EnvironmentProblem, match="use --num_gpus 4"):
        check_hardware(profile, 8, 4)
    check_hardware(profile, 4, 4)


def test_a_shipped_profile_is_known_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a100x8").mkdir()
    for name in ("a100x8", "a100x8.json", "ds_configs/a100x8.json"):
        profile = load_profile(name)
        assert (profile.name, Path(profile.source)) == ("a100x8", PROFILES[0].with_name("a100x8.json"))
    own = write(tmp_path, _comment="mine")
    own.rename(tmp_path / "h200x1.json")
    assert load_profile("h200x1.json").source == "h200x1.json", "a file goes first"
    assert load_profile("h200x1").source != "h200x1.json"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a100x9", "not found: a100x9. Did you mean a100x"),
        ("A100X8", "Did you mean a100x8"),
        ("ds_configs/h100x8.jsn", "Did you mean h100x8"),
        ("elsewhere/a100x8.json", "not found: elsewhere/a100x8.json. Did you mean a100x8"),
        ("qqq", "There is: a100x1, a100x2, "),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, told):
    with pytest.raises(UsageError, match=told):
        load_profile(name)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_says_for_whom_it_is_how_much_it_takes_and_how_fast_it_was(path):
    said, profile = json.loads(path.read_text(encoding="utf-8"))["_comment"], load_profile(str(path))
    if profile.hardware.accelerator == "cpu":
        return
    plan = make_plan(load_recipe("round2"), profile, profile.hardware.num_ranks)
    told = re.search(r"`plan` says (\d+) GiB", said)
    assert told and float(told[1]) == pytest.approx(plan.needed_gib, abs=1)
    clock = run_clock(plan)
    assert (clock is None) == profile.offloads_optimizer, "plan tells how long it takes"
    assert (" Timed: " in said) == (clock is not None and clock.measured) == ("Not timed" not in said)


@pytest.mark.parametrize(
    ("zero", "others", "is_flat"),
    [
        ({"stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0}, {}, True),
        ({"sub_group_size": 1e9, "stage3_gather_16bit_weights_on_model_save": True}, {}, True),
        ({"offload_optimizer": {"device": "none"}}, {"comms_logger": {"enabled": True}}, True),
        ({"offload_param": {"device": "cpu"}}, {}, False),
        ({"zero_quantized_weights": True}, {}, False),
        (OFFLOADS, {}, False),
    ],
)
def test_only_what_is_asked_of_deepspeeds_own_stage_3_brings_it_back(tmp_path, zero, others, is_flat):
    """Every other key leaves the gathering by parts, which is several times faster."""
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    stage3 = {"stage": 3, **zero}
    path = write(tmp_path, bf16={"enabled": True}, zero_optimization=stage3, **accumulation, **others)
    assert load_profile(path).is_flat == is_flat


def test_where_deepspeeds_hooks_gather_its_linear_layers_keep_no_whole_weights(tmp_path):
    """And nowhere else: compiled, they would be one graph a layer."""
    stage3, recipe = {"stage": 3}, load_recipe("round2")
    for profile, expected in (
        (load_profile(write(tmp_path, zero_optimization=stage3)), True),
        (load_profile("a100x8-40gb-zero3"), False),
    ):
        config = deepspeed_config(profile, recipe, derive_batching(profile, recipe, 8))
        assert config["zero_optimization"]["memory_efficient_linear"] == expected
