"""The training entry: a whole run, its directory, stopping, resuming (through the real launcher too), mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from hebrew_asr.audio.source import Part
from hebrew_asr.checkpoints.models import kept_checkpoints, model_of, of_last_phase
from hebrew_asr.checkpoints.sealed import find_checkpoints
from hebrew_asr.cli import main
from hebrew_asr.commands.ours import files_below, is_of_demo
from hebrew_asr.config.recipe import Model
from hebrew_asr.corpus.preparation import shards
from hebrew_asr.corpus.preparation.shards import pack, packed_clips, shards_of
from hebrew_asr.data.manifest import index_manifest, read_manifest, write_manifest
from hebrew_asr.errors import CheckpointError
from hebrew_asr.model.load import load_model
from hebrew_asr.pages.document import asset
from hebrew_asr.report.gather import read_run
from hebrew_asr.report.page import write_report
from tests.support.engine_worker import present_tokens
from tests.support.tiny_task import (
    NO_EVALUATION,
    ROOT,
    events,
    final_weights,
    free_port,
    last_step,
    make_task,
    train_arguments,
    wait_for,
    without_times,
)
from tests.support.warm import WarmStart

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def whole_run(task, warm, tmp_path_factory) -> Path:
    """Never interrupted: 20 clips, 8 a step, so 3 steps an epoch, 15 in all; the phase switch after step 6."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    arguments = train_arguments(
        task, folder, "checkpoints.every_steps=4", "evaluation.every_steps=5", "logging.report=true"
    )
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder.with_suffix(".stdout").write_text(done.stdout, encoding="utf-8")
    return folder


def test_learning_rates_are_printed_as_they_are_taken(whole_run):
    train = events(whole_run, "train")
    told = re.findall(
        r"^.* \| phase (\w+) from|^.* \|   (\w+) \(.*\): [\d,]+(?: \(.*\))?, learning rate up to (\S+)$",
        whole_run.with_suffix(".stdout").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    phase, printed = "", {}
    for name, group, rate in told:
        phase = name or phase
        if group:
            printed[phase, group] = rate
    taken = {(row["phase"], group) for row in train for group in row["lr"]}
    assert printed == {
        (phase, group): f"{max(row['lr'][group] for row in train if row['phase'] == phase):.1e}"
        for phase, group in taken
    }


def test_a_run_tells_its_story(whole_run):
    train = events(whole_run, "train")
    assert [row["step"] for row in train] == list(range(1, 16))
    assert [row["phase"] for row in train] == ["B"] * 6 + ["A"] * 9
    assert [row["clips"] for row in train] == [8, 8, 4] * 5
    keys = {"event", "step", "epoch", "phase", "loss", "grad_norm", "lr", "clips", "audio_s", "tokens", "step_s"}
    assert keys <= train[0].keys()
    assert set(train[0]["lr"]) == {"projector", "llm_top", "head"}
    assert set(train[-1]["lr"]) == {"projector", "llm_top", "head", "audio_top"}
    phases = events(whole_run, "phase")
    assert [(row["step"], row["name"]) for row in phases] == [(0, "B"), (6, "A")]
    assert all(0.5 * row["trainable"] < row["moved"] <= row["compared"] == row["trainable"] for row in phases)
    assert phases[1]["trainable"] > phases[0]["trainable"]
    evaluations = events(whole_run, "eval")
    assert [(row["step"], row["split"]) for row in evaluations] == [
        (0, "sample"),
        *((step, "eval") for step in (3,)),
        (5, "sample"),
        *((step, "eval") for step in (6, 9)),
        (10, "sample"),
        *((step, "eval") for step in (12, 15)),
    ]
    wanted = {"wer", "cer", "wer_mode", "substitutions", "deletions", "insertions", "words", "clips"}
    assert wanted <= evaluations[0].keys()
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["steps"] == 15
    assert summary["phase_switch_step"] == 6
    assert summary["wer_final"] == evaluations[-1]["wer"]
    assert summary["wer_first"] == evaluations[0]["wer"]
    assert summary["seconds"] > 0
    kept = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert {"step-000012", "step-000015"} <= set(kept)
    assert len(kept) <= 3
    assert [row["step"] for row in events(whole_run, "checkpoint")] == [4, 8, 12, 15]
    report = whole_run / "report.html"
    wait_for(lambda: asset("live.js") not in report.read_text(encoding="utf-8"), lambda: False)  # training does not
    page = report.read_text(encoding="utf-8")
    assert page == write_report(whole_run).read_text(encoding="utf-8"), "the last page is that of the whole run"


def test_all_that_a_run_writes_may_be_removed_as_the_demo_s(whole_run):
    assert [name for name in files_below(whole_run) if not is_of_demo(name)] == []


def test_tokens_that_no_clip_holds_keep_their_rows(task, whole_run):
    """Bit for bit in the model that comes out, and their norm is told beside that of the others, before and after."""
    base, final = (load_model(Model(path=str(path))) for path in (task / "base", whole_run / "final"))
    present_V = present_tokens(task, base)
    before, after = base.lm_head.weight, final.lm_head.weight
    assert torch.equal(after[~present_V], before[~present_V])
    assert (after != before).any(dim=1)[present_V].all()
    told = json.loads((whole_run / "summary.json").read_text())["head_row_norms"]
    for moment, weight in (("start", before), ("end", after)):
        for kind, rows in (("present", present_V), ("absent", ~present_V)):
            assert told[moment][kind] == pytest.approx(weight[rows].norm(dim=1).mean().item(), rel=1e-6)
    assert told["start"]["absent"] == told["end"]["absent"]
    assert told["start"]["present"] != told["end"]["present"]
    facts = json.loads((whole_run / "run.json").read_text())
    assert facts["training_vocabulary"] == int(present_V.sum())
    stdout = whole_run.with_suffix(".stdout").read_text(encoding="utf-8")
    assert stdout.count(f"(the rows of {int(present_V.sum()):,} tokens that occur in training; others stay)") == 2


def test_golden_trajectory(whole_run):
    """Stored losses and gradient norms: a refactoring repeats them (1e-4, for other processors' rounding).

    A change of what is learned replaces ``tests/golden/tiny_run.jsonl`` and says why in its commit.
    """
    golden = [json.loads(line) for line in (ROOT / "tests" / "golden" / "tiny_run.jsonl").read_text().splitlines()]
    train = events(whole_run, "train")
    assert [row["tokens"] for row in train] == [row["tokens"] for row in golden]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in train] == pytest.approx([row[key] for row in golden], abs=1e-4, rel=1e-4)


def test_final_model_is_native_and_transcribes(task, warm, whole_run, tmp_path):
    from transformers import AutoProcessor, Qwen3ASRForConditionalGeneration

    _, report = Qwen3ASRForConditionalGeneration.from_pretrained(whole_run / "final", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    AutoProcessor.from_pretrained(whole_run / "final")
    clip = next((task / "data" / "clips").glob("*.wav"))
    for arguments in (
        ["transcribe", "--model", str(whole_run / "final"), str(clip)],
        ["eval", "--model", str(whole_run / "final"), "--data", str(task / "data" / "eval.jsonl"), "--json"],
    ):
        done = command(warm, *arguments)
        assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    last = events(whole_run, "eval")[-1]
    assert {key: figures[key] for key in ("wer", "cer", "words", "clips")} == {
        key: last[key] for key in ("wer", "cer", "words", "clips")
    }, "the command line and the loop measure differently"
    heard = whole_run / "samples" / f"step-{last['step']:06d}-{last['split']}.jsonl"
    done = command(warm, "score", str(heard), "--json")
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout)["modes"][last["wer_mode"]]
    assert (scored["wer"], scored["cer"]) == (last["wer"], last["cer"]), "score and the loop measure differently"
    clips = sorted(map(str, (task / "data" / "clips").glob("eval*.wav")))
    texts = tmp_path / "texts"
    done = command(warm, "transcribe", "--model", str(whole_run), "--json", "--out", str(texts), *clips)
    assert sorted(path.stem for path in texts.iterdir()) == sorted(Path(clip).stem for clip in clips)
    (tmp_path / "heard.jsonl").write_text(done.stdout, encoding="utf-8")
    done = command(warm, "score", str(task / "data" / "eval.jsonl"), str(tmp_path / "heard.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout)["modes"][last["wer_mode"]]
    assert (scored["wer"], scored["cer"]) == (last["wer"], last["cer"]), "transcribe hears otherwise than the loop"
    (tmp_path / "torn.wav").write_bytes(b"no sound")
    done = command(warm, "transcribe", "--model", str(whole_run), str(tmp_path / "torn.wav"))
    assert done.returncode == 3 and done.stderr.endswith("\n1 recording, 1 of them not transcribed\n"), done.stderr


def test_the_average_of_checkpoints_is_the_mean_of_their_weights(whole_run, tmp_path, capfd):
    found = find_checkpoints(whole_run / "checkpoints")
    assert len(found) > 1
    states = [dict(model_of(whole_run, [one])[0].named_parameters()) for one in found]
    steps = [str(one.step) for one in found]
    assert main(["average", str(whole_run), "--out", str(tmp_path / "mean"), "--steps", *steps]) == 0
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    for name, tensor in mean.items():
        expected = sum(state[name].double() for state in states) / len(states)
        assert torch.equal(tensor, expected.float()), name
    assert main(["average", str(whole_run), "--out", str(tmp_path / "chosen"), "--choose"]) == 0
    choice = json.loads((tmp_path / "chosen" / "choice.json").read_text())
    rates = {name: found["wer"] for name, found in choice["candidates"].items()}
    assert rates[choice["chosen"]] == min(rates.values()) and choice["chosen"] in capfd.readouterr().out
    last = events(whole_run, "eval")[-1]
    assert rates[f"last (step {last['step']})"] == last["wer"], "the loop measures differently"
    before = sorted(tmp_path.rglob("*"))
    for wrong in (["--steps", "1", "2"], ["--steps", steps[0]]):
        assert main(["average", str(whole_run), "--out", str(tmp_path / "no"), *wrong]) == 2
    assert main(["average", str(whole_run), "--out", str(tmp_path / "mean")]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_averaged_where_it_was_moved_with_its_base_model(task, whole_run, tmp_path, capfd):
    moved, aside = shutil.copytree(whole_run, tmp_path / "moved"), task / "aside"
    (task / "base").rename(aside)
    try:
        assert main(["average", str(moved), "--out", str(tmp_path / "no")]) == 5
        assert f"trained from a model in the folder {task / 'base'}, which is not here" in capfd.readouterr().err
        other = shutil.copytree(aside, moved / "base")
        assert main(["average", str(moved), "--out", str(tmp_path / "mean")]) == 0
        weights = load_file(other / "model.safetensors")
        weights[min(weights)].add_(1)
        save_file(weights, other / "model.safetensors", {"format": "pt"})
        assert main(["average", str(moved), "--out", str(tmp_path / "no")]) == 5
        assert f"was trained on another model than {moved / 'base'}: other weights" in capfd.readouterr().err
    finally:
        aside.rename(task / "base")


def test_a_run_of_relative_paths_is_averaged_and_reported_from_any_folder(task, warm, tmp_path, monkeypatch):
    """Those of a recipe count from the folder in which training was started; a run knows the whole ones."""
    run, changes = tmp_path / "run", ["checkpoints.every_steps=1", "max_steps=2", *NO_EVALUATION]
    base, data = (os.path.relpath(task / name) for name in ("base", "data"))
    changes += [f"model.path={base}", f"data.folder={data}"]
    done = warm.finish(train_arguments(task, run, *changes), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["model"]["path"], recipe["data"]["folder"]) == (base, data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["average", str(run), "--out", "mean"]) == 0
    assert main(["average", str(run), "--out", "chosen", "--choose"]) == 0
    manifests = read_run(run).manifests
    assert manifests is not None and all(Path(file).is_file() for file in manifests.audio_of.values())


def test_the_set_to_choose_on_may_be_named_by_its_folder(task, whole_run, tmp_path, capfd):
    choose = ["average", str(whole_run), "--out", str(tmp_path / "chosen"), "--choose", "--data"]
    assert main([*choose, str(tmp_path)]) == 3
    assert f"no evaluation manifest at {tmp_path / 'eval.jsonl'}: give --data" in capfd.readouterr().err
    assert main([*choose, str(task / "data")]) == 0


def test_a_mean_of_one_checkpoint_is_refused_with_those_that_there_are(whole_run, tmp_path, capfd):
    first, *others = (str(checkpoint.step) for checkpoint in kept_checkpoints(whole_run))
    assert main(["average", str(whole_run), "--out", str(tmp_path / "mean"), "--steps", first]) == 2
    told = f"there is step {first} alone; --steps takes those of any phase, such as {', '.join(others)}\n"
    assert capfd.readouterr().err.endswith(told)


def test_a_checkpoint_that_training_drops_meanwhile_is_told_as_gone(whole_run, tmp_path):
    run = shutil.copytree(whole_run, tmp_path / "run")
    kept = kept_checkpoints(run)
    shutil.rmtree(kept[0].path)
    for read in (lambda: of_last_phase(kept), lambda: model_of(run, kept), lambda: model_of(run, kept, verify=False)):
        with pytest.raises(CheckpointError, match=f"{kept[0].path} is gone since this command began"):
            read()


def command(warm: WarmStart, *arguments: str) -> subprocess.CompletedProcess:
    """``hebrew-asr`` and its arguments."""
    return warm.finish(list(arguments), program="hebrew_asr.cli")


@pytest.mark.parametrize("first", [5, 6, 8], ids=["before the switch", "at the switch", "after it"])
def test_stopped_and_resumed_is_never_stopped(task, warm, whole_run, tmp_path, first):
    """Bit for bit: losses, learning rates, WER and final weights."""
    folder = tmp_path / "run"
    changes = ["checkpoints.every_steps=4", "evaluation.every_steps=5"]
    done = warm.finish(train_arguments(task, folder, *changes, f"max_steps={first}"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "summary.json").unlink()
    done = warm.finish(train_arguments(task, folder, *changes, resume="auto"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout
    assert without_times(events(folder, "train")) == without_times(events(whole_run, "train"))
    found, expected = (
        [row for row in without_times(events(run, "eval")) if row["step"] > first] for run in (folder, whole_run)
    )
    assert found == expected
    expected = final_weights(whole_run)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_weights(folder).items())


def in_shards(task: Path, folder: Path) -> Path:
    """The task with the same sound in shards of a few clips each."""
    (folder / "base").symlink_to(task / "base")
    for side in ("train", "eval"):
        files = read_manifest(task / "data" / f"{side}.jsonl")
        sounds = [Part(clip.audio, 0, Path(clip.audio).stat().st_size) for clip in files]
        shards = shards_of(folder / "data", side, files, sounds)
        clips = [clip for shard in shards for clip in packed_clips(shard, pack(shard), folder / "data")]
        write_manifest(folder / "data" / f"{side}.jsonl", clips)
        index_manifest(folder / "data" / f"{side}.jsonl")
    assert len(list(folder.glob("data/data/train-*-of-00004.parquet"))) == 4
    return folder


def test_from_shards_killed_and_resumed_is_from_files_and_never_killed(task, warm, whole_run, tmp_path, monkeypatch):
    """Bit for bit: losses, learning rates, WER and final weights; without reading the start of anything again."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 300_000)
    own, folder = in_shards(task, tmp_path), tmp_path / "run"
    arguments = train_arguments(own, folder, "checkpoints.every_steps=4", "evaluation.every_steps=5", resume="auto")
    pids = warm.start(arguments, ranks=2, port=free_port(), output=tmp_path / "log")
    while last_step(folder) < 9:
        assert all(map(psutil.pid_exists, pids)), (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [warm.wait(pid) for pid in pids] == [-signal.SIGKILL] * 2
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout
    for kind in ("train", "eval"):
        assert without_times(events(folder, kind)) == without_times(events(whole_run, kind))
    expected = final_weights(whole_run)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_weights(folder).items())


def test_resumes_on_another_rank_count(task, warm, whole_run, tmp_path):
    """2 ranks, then 1: the same clips, losses within fp32 rounding of another reduction order (1e-4 nats)."""
    folder = tmp_path / "run"
    done = warm.finish(train_arguments(task, folder, "max_steps=7"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    done = warm.finish(train_arguments(task, folder, resume="auto"), ranks=1, port=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = events(folder, "train"), events(whole_run, "train")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-4)
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        (["optimizer.weight_decai=1"], 2, "unknown key optimizer.weight_decai (did you mean weight_decay?)"),
        (["data.folder=nowhere"], 3, "manifest not found: nowhere/train.jsonl"),
        (["model.path=nowhere/model"], 4, "nowhere/model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(task, warm, tmp_path, changes, code, told):
    folder = tmp_path / "run"
    done = command(
        warm, "train", *train_arguments(task, folder, *changes), "--num-gpus", "1", "--master-port", str(free_port())
    )
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in done.stderr
    assert not folder.exists()


def test_unreadable_audio_names_the_file(warm, tmp_path):
    broken = make_task(tmp_path / "task", train_clips=4, eval_clips=1)
    victim = next((broken / "data" / "clips").glob("train*.wav"))
    victim.write_bytes(b"RIFF but no more")
    done = warm.finish(train_arguments(broken, tmp_path / "run"), port=free_port())
    assert done.returncode == 3
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert victim.name in told[0]


def test_a_used_run_directory_is_refused_and_another_recipe_too(task, warm, whole_run, tmp_path):
    begun = shutil.copytree(whole_run, tmp_path / "begun")
    (begun / "summary.json").unlink()
    ten = [f"optimizer.{key}" for key in ("beta1=0.8", "beta2=0.9", "eps=1e-7", "weight_decay=0.1")]
    ten += [f"optimizer.{key}" for key in ("clip_grad_norm=2", "warmup_share=0.5", "join_warmup_steps=9")]
    ten += ["data.max_duration_s=20", "seed=7", "augmentation.num_time_masks=7"]
    for run, resume, changes, code, told in (
        (begun, "never", [], 2, "holds a run; add --resume auto"),
        (whole_run, "never", [], 2, f"finished run: 15 steps, model in {whole_run / 'final'}; give --run another name"),
        (whole_run, "never", ["seed=7"], 5, "made by another recipe"),
        (whole_run, "auto", ["seed=7"], 5, "made by another recipe"),
        (whole_run, "auto", ten, 5, "; and 2 more); give --run another name"),
    ):
        arguments = train_arguments(task, run, *changes, resume=resume)
        done = command(warm, "train", *arguments, "--num-gpus", "1", "--master-port", str(free_port()))
        assert done.returncode == code
        assert told in done.stderr
