"""``hebrew-asr plan``: measured peaks are met, profiles fit their cards, what does not fit is told with a way out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from hebrew_asr.cli import main
from hebrew_asr.commands.plan import as_json
from hebrew_asr.config.batching import derive_batching
from hebrew_asr.config.profiles import Profile, load_profile
from hebrew_asr.config.recipe import RECIPES_DIR, load_recipe
from hebrew_asr.data.manifest import Clip, index_manifest, write_manifest
from hebrew_asr.data.shapes import Shape
from hebrew_asr.demo.tiny import save_tiny
from hebrew_asr.errors import CheckpointError, UsageError
from hebrew_asr.model.folder import read_config
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.sizes import PUBLISHED, ModelSizes, sizes_at, weight_shapes
from hebrew_asr.planning import cards
from hebrew_asr.planning.bench_corpus import draw_clips
from hebrew_asr.planning.clock import measured_speeds, run_clock
from hebrew_asr.planning.plan import (
    LengthTokenizer,
    RunPlan,
    _phase_memory,
    make_plan,
)
from hebrew_asr.planning.zero_memory import Sizes, sizes_of, zero_memory
from hebrew_asr.units import GIB
from tests.support.tiny_task import SPEC, WORDS
from tests.unit.test_load import CONFIG_1_7B, NUM_WEIGHTS_1_7B

HUB_IDS_1_7B = ("Qwen/Qwen3-ASR-1.7B", "Qwen/Qwen3-ASR-1.7B-hf")
PROFILES = Path(__file__).parents[2] / "ds_configs"
MEASURED = [
    # ZeRO stage, GPUs, clips a step, largest shape met, torch.cuda.max_memory_allocated in GiB: phase B on H100s,
    # compiled, 40 steps of `hebrew-asr bench` (100 of 8 clips).
    (1, 1, 64, Shape(6912, 4736, 392, 119, 87, 1408), 30.10),
    (1, 1, 8, Shape(1472, 1088, 88, 25, 14, 320), 20.99),
    (2, 2, 64, Shape(3456, 2432, 200, 61, 44, 768), 14.8),
    (1, 2, 64, Shape(3456, 2432, 200, 61, 44, 768), 18.79),
]


def profile_of(name: str) -> Profile:
    return load_profile(PROFILES / f"{name}.json")


@cache
def plan_of(name: str) -> RunPlan:
    profile = profile_of(name)
    return make_plan(load_recipe("round2"), profile, profile.hardware.num_ranks)


def test_the_architecture_is_the_published_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_1_7B))
    published = ModelSizes.of(read_config(tmp_path)[0])
    assert all(sizes_at(name) == published for name in (str(tmp_path), *HUB_IDS_1_7B))
    assert sum(map(math.prod, weight_shapes(published).values())) == NUM_WEIGHTS_1_7B
    with pytest.raises(UsageError, match="not known here; give a local folder"):
        sizes_at("somebody/else")


def test_sizes_of_a_folder_are_those_that_transformers_reads(tmp_path, tiny_folder):
    """Of either layout, whatever is left out or wrong."""
    native = json.loads((tiny_folder / "config.json").read_text())
    biased = {**native, "text_config": {**native["text_config"], "attention_bias": True}}
    untied = {**native, "tie_word_embeddings": False}
    no_heads = {**native, "text_config": {k: v for k, v in native["text_config"].items() if k != "num_attention_heads"}}
    shorter = json.loads(json.dumps(CONFIG_1_7B))
    shorter["thinker_config"]["text_config"]["tie_word_embeddings"] = False
    del shorter["thinker_config"]["audio_config"]["n_window"]
    for values in (native, biased, untied, no_heads, shorter):
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert sizes_at(str(tmp_path)) == ModelSizes.of(read_config(tmp_path)[0])
    for broken in (
        {**native, "model_type": "qwen2"},
        {**native, "quantization_config": {"bits": 4}},
        [],
        {**native, "text_config": 3},
    ):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            sizes_at(str(tmp_path))


def test_a_plan_loads_no_torch():
    """It takes seconds to load; so does transformers, which needs it."""
    script = """
import sys
from hebrew_asr.cli import main
codes = [main(["plan", "--ds", "a100x8"]), main(["plan", "--ds", sys.argv[1], "--json"])]
sys.exit(any(codes) or "torch" in sys.modules)
"""
    line = [sys.executable, "-c", script, str(PROFILES / "rtx4090x1.json")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("stage", "ranks", "clips", "shape", "measured_gib"), MEASURED)
def test_peaks_are_those_measured_on_a_gpu(stage, ranks, clips, shape, measured_gib):
    profile = load_profile(PROFILES / "h200x1.json")
    zero = {"stage": stage, "overlap_comm": True, "reduce_bucket_size": 100_000_000}
    profile = replace(profile, config={**profile.config, "zero_optimization": zero})
    profile = replace(profile, hardware=replace(profile.hardware, cuda_graphs=False))  # no pass was cut at the seam
    recipe = load_recipe("round2", [f"clips_per_step={clips}"])
    plan = derive_batching(profile, recipe, ranks)
    foretold = _phase_memory(PUBLISHED[HUB_IDS_1_7B[0]], recipe, recipe.phases[0], profile, plan, shape).peak / GIB
    assert foretold == pytest.approx(measured_gib, rel=0.05)


def test_a_pass_that_is_cut_holds_its_reductions_memory_throughout():
    recipe, sizes = load_recipe("round2"), PUBLISHED[HUB_IDS_1_7B[0]]
    for name, is_cut in (("h200x1", False), ("a100x2", True)):
        cut = profile_of(name)
        whole = replace(cut, hardware=replace(cut.hardware, cuda_graphs=False))
        shape, batching = MEASURED[2 * is_cut][3], derive_batching(cut, recipe, cut.hardware.num_ranks)
        a, b = (_phase_memory(sizes, recipe, recipe.phases[0], each, batching, shape) for each in (cut, whole))
        more = a.zero.step_gradients + a.zero.step_buckets
        assert cut.uses_cuda_graphs and a.peak_at == "forward and backward"
        assert a.training - b.training == (pytest.approx(more, abs=more / 2) if is_cut else 0), name


@pytest.mark.parametrize(("name", "memory_gib"), [("a100x8", 40), ("rtx4090x1", 22.5), ("a10gx4", 22.5)])
def test_profiles_fit_with_room(name, memory_gib):
    assert plan_of(name).needed_gib < 0.9 * memory_gib


def test_what_a_card_needs_is_what_doctor_goes_by():
    known = [*cards._NEEDED_GIB.values(), cards._OFFLOADED_GIB]
    plans = [plan_of(name) for name in ("a100x1", "a100x2", "h200x4", "a100x8", "rtx4090x1")]
    assert [plan.batching.num_ranks for plan in plans] == [*cards._NEEDED_GIB, 1]
    for plan, needed in zip(plans, known, strict=True):
        assert 0.9 * needed < plan.needed_gib <= needed, plan.profile.name


def test_the_arithmetic_of_the_recipe():
    plan = plan_of("a100x8")
    assert (plan.num_clips, plan.steps_per_epoch, plan.total_steps) == (186_812, 2_919, 14_595)
    assert plan.phase_starts == [0, 5_838]
    assert [phase.trainable for phase in plan.phases] == [918_349_824, 1_019_119_616]
    assert plan.disk.checkpoint == 12 * 1_019_119_616
    assert plan.disk.total == 4 * plan.disk.checkpoint + 2 * NUM_WEIGHTS_1_7B
    assert plan.phases[1].peak > plan.phases[0].peak


@pytest.mark.parametrize("name", ["a100x8", "a100x2", "h200x4", "a10gx4"])
def test_several_gpus_have_zero2_which_takes_less_than_zero1(name):
    recipe, profile, shapes = load_recipe("round2"), profile_of(name), weight_shapes(PUBLISHED[HUB_IDS_1_7B[0]])
    assert profile.zero_stage == 2
    twin = replace(profile, config={**profile.config, "zero_optimization": {"stage": 1}})
    sizes = sizes_of(shapes, phase_groups(shapes, recipe, recipe.phases[-1]))
    two, one = (zero_memory(each, sizes, profile.hardware.num_ranks, 1) for each in (profile, twin))
    assert two.always == one.always - 4 * sizes.trainable, "no fp32 gradients while forward and backward run"
    at_the_end = [each.always + each.all_at_once + each.step_gradients + each.step_buckets for each in (two, one)]
    assert at_the_end[0] < at_the_end[1] - sizes.trainable, "with a slice and two buckets a byte a weight less"


def test_weights_that_wait_for_backward_take_memory_only_while_it_has_not_come_to_them():
    recipe, sizes, profile = load_recipe("round2"), PUBLISHED[HUB_IDS_1_7B[0]], profile_of("a100x8-40gb-zero3")
    zero = profile.config["zero_optimization"]
    batching, shape = derive_batching(profile, recipe, 8), MEASURED[0][3]
    plans = []
    for live in (0, 500_000_000):
        section = {**zero, "stage3_max_live_parameters": live}
        each = replace(profile, config={**profile.config, "zero_optimization": section})
        plans.append(_phase_memory(sizes, recipe, recipe.phases[0], each, batching, shape))
    assert plans[0].peak_at == plans[1].peak_at == "forward and backward"
    assert plans[1].training - plans[0].training == plans[1].zero.kept == 2 * 500_000_000 and not plans[0].zero.kept


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharding_and_offload_take_memory_off_the_card(stage):
    sizes = Sizes([1_000_000, 400_000, 999], [[400_000], [999]])
    config = json.loads((PROFILES / "a100x8.json").read_text())
    profile = load_profile(PROFILES / "a100x8.json")
    zero = {"stage": stage, "reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000}
    profile = replace(profile, config={**config, "zero_optimization": zero})
    one, eight = (zero_memory(profile, sizes, ranks, 1) for ranks in (1, 8))
    assert one.optimizer == pytest.approx(12 * sizes.trainable, rel=1e-3)
    assert one.optimizer == pytest.approx(8 * eight.optimizer, rel=1e-3)
    assert one.always > eight.always and not one.host
    if stage > 1:
        profile.config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        offloaded = zero_memory(profile, sizes, 1, 1)
        assert offloaded.optimizer == 0 and offloaded.host > one.optimizer


def test_lengths_without_a_tokenizer():
    count = LengthTokenizer()
    assert len(count("<|im_start|>system\n")["input_ids"]) == 9
    assert len(count("<|audio_end|><|im_end|>\n")["input_ids"]) == 6
    # Qwen3's tokenizer gives 23 for this sentence with its prefix.
    assert (
        18 <= len(count("language Hebrew<asr_text>בעיקבות הישיבה ההיא הוחלט על הטלת סגר על ישראל")["input_ids"]) <= 24
    )


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny(folder, SPEC, [" ".join(WORDS)], 0)
    return folder


@pytest.fixture
def tiny(tmp_path, tiny_folder):
    """A tiny model with 40 clips of 29 s, and the options that plan for it."""
    clips = [Clip(f"{i}.flac", f"language Hebrew<asr_text>{' '.join(WORDS * 5)}", str(i), 29.0) for i in range(40)]
    write_manifest(tmp_path / "data" / "train.jsonl", clips)
    sets = ["clips_per_step=16", 'unfrozen_layers={"llm_top": 2, "audio_top": 2}', f"data.folder={tmp_path / 'data'}"]
    return [*sets, f"model.path={tiny_folder}"]


def test_the_data_folder_decides_where_there_is_one(tiny, tmp_path, capsys):
    # --data goes before what --set says of the folder
    options = [part for change in [*tiny, "data.folder=nowhere"] for part in ("--set", change)]
    options += ["--data", str(tmp_path / "data")]
    cpu = str(PROFILES / "cpu.json")
    assert main(["plan", "--ds", cpu, "--data", str(tmp_path)]) == 3
    assert f"no prepared set in {tmp_path}" in capsys.readouterr().err
    command = ["plan", "--ds", cpu, "--clips-per-s", "2", "--num-gpus", "1", "--price-per-hour", "36", *options]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["lengths_from_data"] and (values["clips"], values["steps_per_epoch"]) == (40, 3)
    assert values["shapes"][-1]["audio_tokens"] > 16 * 29 * 12
    assert values["phases"][1]["peak"] > values["phases"][0]["peak"] > 0
    index_manifest(tmp_path / "data" / "train.jsonl")
    (tmp_path / "data" / "train.jsonl").unlink()
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out) == values
    for line in ("fits:", "16 clips per step = 1 rank", "40 clips (lengths of", "switch to phase A after step 6"):
        assert line in told
    assert values["time"]["steps_s"] == 5 * 3 * 16 / 2 and values["eval_clips"] == 0
    assert values["prepare_core_s"] is None and "data preparation" not in told, "it is done"
    assert values["price"] == pytest.approx(values["time"]["total_s"] / 100)
    assert "minutes, 1.50 at 36 per hour" in told and "scaled: 2 clips/s, as given" in told


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES_DIR.glob("*.json")))
def test_every_recipe_is_planned(name, capsys, monkeypatch, tmp_path):
    """The demo's own model and data are not there: then its sizes are not known, and that is said."""
    monkeypatch.chdir(tmp_path)  # in the repository there may be a demo's
    code = main(["plan", "--ds", "h200x1", "--recipe", name, "--json"])
    told = capsys.readouterr()
    if not load_recipe(name).model.path.startswith("Qwen/"):
        assert code == 2 and "sizes of model" in told.err
        return
    assert code == 0, told.err
    values = json.loads(told.out)
    round2 = as_json(plan_of("h200x1"), None, None)
    trainable = [phase["trainable"] for phase in values["phases"]]
    minutes = values["time"]["steps_s"] / 60
    if name == "round2":
        assert values["time"]["measured"] and values["phases"] == round2["phases"]
        assert values["prepare_core_s"] == pytest.approx(186_812 * 7.1e-3)
    elif name == "round2-long":
        assert values["time"]["measured"] and values["total_steps"] == 2 * round2["total_steps"]
        assert trainable == [phase["trainable"] for phase in round2["phases"]]
        assert values["needed_gib"] == pytest.approx(round2["needed_gib"], rel=0.01)
        assert values["phase_starts"] == [0, 4 * values["steps_per_epoch"]]
    elif name == "full":
        assert trainable == [NUM_WEIGHTS_1_7B], "all of them"
        assert not values["time"]["measured"] and "times as long as round2's" in values["time"]["source"]
        assert 60 * minutes > values["total_steps"] * 0.1254, "more work than phase A"
        assert values["needed_gib"] > 1.3 * round2["needed_gib"]
    else:
        assert name == "0.6b" and not values["time"]["measured"]
        assert values["needed_gib"] < 0.7 * round2["needed_gib"] and minutes < 20
        assert trainable[0] < trainable[1] < 600_000_000


def test_the_time_of_a_run_is_that_of_measured_steps_or_called_scaled():
    four, eight = (run_clock(plan_of(name)) for name in ("h200x4", "a100x8"))
    assert four is not None and eight is not None and four.measured and not eight.measured
    assert four.steps_s == pytest.approx(2919 * (2 * 0.0368 + 3 * 0.0405))
    assert four.compile_s > 0 and "3.2 times as long, as data sheets have it" in eight.source
    sharded = plan_of("a100x8-40gb-zero3")
    zero_3 = run_clock(sharded)
    assert zero_3 is not None and not zero_3.measured and "on H200s, taken 3.2 times as long" in zero_3.source
    assert zero_3.steps_s == pytest.approx(2919 * (2 * 0.0408 + 3 * 0.0438) * 989 / 312), (
        "its own steps, not those of ZeRO-2"
    )
    launched = replace(sharded.profile.hardware, cuda_graphs=False)
    launched = replace(sharded, profile=replace(sharded.profile, hardware=launched))
    assert run_clock(launched) is None, "only recorded passes were timed under ZeRO-3"
    assert not any(run_clock(plan_of(name)) for name in ("rtx4090x1", "cpu")), "not timed"
    told = run_clock(plan_of("rtx4090x1"), clips_per_s=100)
    assert told is not None and told.steps_s == pytest.approx(5 * 2919 * 64 / 100)


def test_a_run_that_was_timed_takes_as_long_and_as_much_memory(tmp_path, capsys):
    """300 steps over both phases, nothing cached. One H200: 186 s from the command to its end; torch held 44.3 GiB at
    most. Two: ``nvidia-smi`` told of 25.2 GiB on a card; the time is of an older program.
    """
    (tmp_path / "clips").mkdir()
    for name, count in (("train", 3840), ("eval", 100)):
        write_manifest(tmp_path / f"{name}.jsonl", draw_clips(name, count, tmp_path))
    for profile, seconds, gib in (("h200x1", 186, 44.3), ("a100x2", None, 25.2)):
        assert main(["plan", "--ds", profile, "--data", str(tmp_path), "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["total_steps"] == 300 and plan["needed_gib"] == pytest.approx(gib, rel=0.1)
        if seconds is not None:
            assert plan["time"]["measured"] and plan["time"]["total_s"] == pytest.approx(seconds, rel=0.1)


def test_a_run_that_was_timed_with_its_evaluations_takes_as_long(tmp_path, capsys):
    """300 steps over both phases, nothing cached, one H200, 9,800 clips after each epoch: 246 s from the command to its
    end, and 51 of them in whole evaluations. 19 went by in waiting for a checkpoint at the change of phase, which a run
    that was rehearsed has done without since.
    """
    (tmp_path / "clips").mkdir()
    for name, count in (("train", 9600), ("eval", 9800)):
        write_manifest(tmp_path / f"{name}.jsonl", draw_clips(name, count, tmp_path))
    changes = [*(f"--set=phases.{phase}.epochs=1" for phase in (0, 1)), "--set=model.random_weights=true"]
    assert main(["plan", "--ds", "h200x1", "--data", str(tmp_path), *changes, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    time = plan["time"]
    assert plan["total_steps"] == 300 and time["measured"]
    assert time["total_s"] == pytest.approx(246 - 19, rel=0.1)
    assert time["evaluation_s"] == pytest.approx(51, rel=0.1)
    assert main(["plan", "--ds", "h200x1", "--data", str(tmp_path), *changes, "--set=rehearse=false", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time"]["total_s"] == pytest.approx(222, rel=0.1), "timed that way too"


def test_a_sample_is_no_larger_than_the_split():
    plan, known = plan_of("h200x1"), measured_speeds()
    every = plan.recipe.evaluation.every_steps
    times = 1 + plan.total_steps // every + 5 + 2  # at the start, on the way, after epochs, to choose the model
    by_size = replace(plan.recipe, evaluation=replace(plan.recipe.evaluation, batch_clips=4))
    for recipe, each_s in (
        (plan.recipe, known.evaluation_s + 8 * known.evaluation_s_per_clip),
        (by_size, 2 * known.decoding_s_per_batch),
    ):
        clock = run_clock(replace(plan, recipe=recipe, num_eval_clips=8))
        assert clock is not None and clock.evaluation_s == pytest.approx(each_s * times)


def test_a_run_that_max_steps_ends_is_planned_to_that_step(capsys):
    whole = plan_of("h200x4")
    ends = replace(whole, last_step=whole.phase_starts[1] + 100)  # in the second phase
    assert (whole.phase_steps, ends.phase_steps) == ([5_838, 8_757], [5_838, 100])
    assert main(["plan", "--ds", "h200x4", "--set", "max_steps=1200", "--json"]) == 0
    values, clock = json.loads(capsys.readouterr().out), run_clock(whole)
    assert clock is not None and values["total_steps"] == whole.total_steps and values["last_step"] == 1200
    time, known = values["time"], measured_speeds()
    assert time["steps_s"] == pytest.approx(1200 * 0.0368)
    assert time["compile_s"] == clock.compile_s / 2 and time["recording_s"] == clock.recording_s / 2
    of_sample_s = known.evaluation_s + known.evaluation_s_per_clip * math.ceil(100 / 4)
    assert time["evaluation_s"] == pytest.approx(of_sample_s * 4), "0, 500, 1000, 1200"
    written = (whole.disk.checkpoint + whole.disk.model) / GIB / known.written_gib_per_s
    assert time["checkpoint_s"] == pytest.approx(known.checkpoint_s * 3 + written)
    assert main(["plan", "--ds", "h200x4", "--set", "max_steps=1200"]) == 0
    told = capsys.readouterr().out
    assert "14,595 in 5 epochs; max_steps ends it after 1,200" in told
    assert "switch to phase A after step 5,838 (not reached)" in told


def test_more_clips_per_gpu_take_longer_and_fewer_gpus_too():
    plan, times = plan_of("h200x4"), []
    for ranks in (8, 6, 4, 3, 2, 1):
        clock = run_clock(replace(plan, batching=derive_batching(plan.profile, plan.recipe, ranks)))
        assert clock is not None
        times.append(clock.steps_s)
    assert times == sorted(times)


def test_what_does_not_fit_is_told_with_a_way_out(tiny, capsys):
    recipe, profile = load_recipe("round2", tiny), load_profile(PROFILES / "cpu.json")
    whole = make_plan(recipe, profile, 1).needed_gib
    base = 1.2 + 0.3 * 1.05
    assert whole > base
    card = base + 0.35 * (whole - base)  # half of the clips would not do
    options = [part for change in tiny for part in ("--set", change)]
    command = ["plan", "--ds", str(PROFILES / "cpu.json"), "--num-gpus", "1", *options]
    assert main([*command, "--memory-gib", str(card)]) == 4
    told = capsys.readouterr()
    assert "DOES NOT FIT" in told.out and "train_micro_batch_size_per_gpu 4 needs" in told.err
    assert main([*command, "--memory-gib", "1"]) == 4
    assert "no micro-batch fits" in capsys.readouterr().err
