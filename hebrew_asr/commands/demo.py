"""``hebrew-asr demo``: the whole main job on a laptop, with speech made on the spot or your own recordings."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.config.options import Out

SEED = 0
TRAIN_CLIPS, EVAL_CLIPS = 10_000, 200
SHOWN_CLIPS = 5
ROOT = Path(__file__).parents[2]


@dataclass
class Command:
    """Train a tiny Qwen3-ASR from random weights through both phases on two CPU ranks, and transcribe with it.

    Without --data, Hebrew speech is synthesized: the model is measured on sentences and voices it never trained on.
    With --data, it learns a folder of your recordings by heart: real speech through the same path.

    $ hebrew-asr demo
    (ten minutes or so on two cores)
    $ hebrew-asr demo --data recordings
    """

    data: str | None = None
    """Folder of audio files with text: x.wav beside x.txt, or a clips.jsonl, metadata.jsonl, csv or tsv listing."""
    out: Out[str | None] = None
    """Run directory; demo-run, or demo-run-own with --data, unless given."""
    fresh: bool = False
    """Start over: remove the run of the demo that the run directory holds. It removes nothing else."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import claim_demo_folder
        from hebrew_asr.errors import Preempted
        from hebrew_asr.report.page import write_report

        started = time.monotonic()
        folder = Path(self.out or ("demo-run-own" if self.data else "demo-run"))
        claim_demo_folder(folder, _made_from(self.data, folder), fresh=self.fresh)
        if (folder / "summary.json").is_file():
            _say(f"{folder} holds a finished run; showing it (--fresh trains again)")
        else:
            data = _own_data(self.data, folder) if self.data else _synthetic_data()
            _base_model(folder / "base", data)
            code = _train(folder, data, "memorize" if self.data else "demo")
            if code == Preempted.exit_code:
                _say("the same command goes on from there; --fresh starts over")
            if code:
                return code
        _table(folder, on_training=bool(self.data))
        _say(f"report: {write_report(folder)}")
        _say(f"all of it took {time.monotonic() - started:.0f} s; metrics, samples, checkpoints and model: {folder}/")
        _hear_some(folder)
        return 0


def _say(text: str) -> None:
    print(f"\n==> {text}", flush=True)


def _made_from(source: str | None, folder: Path) -> dict[str, Any]:
    """What decides a run's data: nothing for synthetic speech, and every text and byte of sound of one's own.

    Raises:
        UsageError: one of the two folders lies in the other.
        DataError: ``source`` cannot be read.
    """
    import hashlib

    from hebrew_asr.errors import DataError, UsageError
    from hebrew_asr.files import real_path
    from hebrew_asr.sources import is_local, open_source

    if source is None:
        return {"data": None}
    if not is_local(source):
        raise DataError(f"--data {source}: no such file or folder")
    own, out = real_path(source), real_path(folder)
    if own.is_relative_to(out) or (own.is_dir() and out.is_relative_to(own)):
        raise UsageError(f"--data {source} and --out {folder} lie in each other: choose another --out")
    opened, content = open_source(source), hashlib.sha256()
    for shard in opened.shards:
        for unit in shard.units():
            for _, row in unit.rows():
                if row.problem is None:
                    content.update(hashlib.sha256(row.audio_bytes()).digest())
    return {"data": str(own), "revision": opened.revision, "sound": content.hexdigest()}


def _synthetic_data() -> Path:
    from hebrew_asr.cores import usable_cores
    from hebrew_asr.demo.synthesis import synthesize_corpus

    folder = Path("demo-data")
    _say(f"speech: {TRAIN_CLIPS:,} clips to train on, {EVAL_CLIPS} of other sentences by other voices, in {folder}/")
    processes = len(usable_cores())
    synthesize_corpus(folder, train_clips=TRAIN_CLIPS, eval_clips=EVAL_CLIPS, seed=SEED, processes=processes)
    return folder


def _own_data(source: str, folder: Path) -> Path:
    """Prepare a folder of recordings and learn all of them: what it is measured on is what it trains on."""
    from hebrew_asr.corpus.preparation.options import PrepareOptions
    from hebrew_asr.corpus.prepare import prepare
    from hebrew_asr.data.manifest import read_manifest, write_manifest

    _say(f"data: preparing {source} in {folder}/prepared; the demo learns all of it, and is measured on the same")
    prepare(PrepareOptions(source=(source,), out=folder / "prepared", eval_fraction=0.0, max_duration_s=30.0))
    clips = read_manifest(folder / "prepared" / "train.jsonl")
    for name in ("train", "eval"):
        write_manifest(folder / "data" / f"{name}.jsonl", clips)
    return folder / "data"


def _base_model(folder: Path, data: Path) -> None:
    from hebrew_asr.data.manifest import read_manifest
    from hebrew_asr.demo.tiny import TinySpec, save_tiny

    if (folder / "config.json").is_file():
        return
    _say(f"model: the architecture of Qwen3-ASR-1.7B in small, random weights, its own tokenizer, in {folder}/")
    temporary = folder.with_name(".tmp-base")
    shutil.rmtree(temporary, ignore_errors=True)
    save_tiny(
        temporary,
        TinySpec(),
        [clip.transcript for clip in read_manifest(data / "train.jsonl", allow_outside=True)],
        SEED,
    )
    temporary.rename(folder)


def _train(folder: Path, data: Path, recipe: str) -> int:
    from hebrew_asr.commands.train import Command as Train

    # A child, so that a stop or a crash of training is the launcher's to handle, as on a real node.
    command = Train(
        ds=str(ROOT / "ds_configs" / "cpu.json"),
        recipe=recipe,
        set=[f"model.path={(folder / 'base').resolve()}", f"data.folder={data.resolve()}"],
        run_dir=str(folder),
        resume="auto",
    )
    launched = f"--ds ds_configs/cpu.json --recipe {recipe} --run {folder} --resume auto"
    _say(f"training: deepspeed --num_gpus 2 hebrew_asr/train.py {launched}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return command.run()


def _table(folder: Path, *, on_training: bool) -> None:
    """The run in one table: every epoch's end, and the switch between them."""
    from rich.table import Table

    from hebrew_asr.report.gather import read_run
    from hebrew_asr.report.records import PhaseRecord
    from hebrew_asr.streams import print_table

    run = read_run(folder)
    title = "WER on the recordings it trained on" if on_training else "WER on unseen sentences by unseen voices"
    table = Table(title=title, title_justify="left")
    for name in ("step", "epoch", "phase", "loss", "WER", "CER"):
        table.add_column(name, justify="right" if name != "phase" else "left")
    full = [record for record in run.evaluations if record.split == "eval" or not record.step]
    shown = full if len(full) > 2 else run.evaluations
    keep = {shown[round(i * (len(shown) - 1) / 9)].step for i in range(10)}
    rows = [record for record in run.evaluations if record.step in keep]
    switches = [record for record in run.proofs if record.step]
    for record in sorted([*rows, *switches], key=lambda record: record.step):  # at one step, evaluations come first
        if isinstance(record, PhaseRecord):
            table.add_section()
            table.add_row(str(record.step), "", f"switch to {record.name}: {record.trainable:,} weights train")
            table.add_section()
            continue
        before = [step for step in run.steps if step.step <= record.step][-1:]
        cells = [(f"{step.epoch}", step.phase, f"{step.loss:.3f}") for step in before] or [("0", "before training", "")]
        table.add_row(str(record.step), *cells[0], f"{record.wer:.1%}", f"{record.cer:.1%}")
    print("\n")
    print_table(table)


def _hear_some(folder: Path) -> None:
    """Clips drawn at random, what was said in them and what the final model hears, their WER, and what to do next."""
    import random

    from hebrew_asr.data.manifest import read_manifest
    from hebrew_asr.inference.transcriber import Transcriber
    from hebrew_asr.launching.command import next_commands
    from hebrew_asr.text.wer import count_errors
    from hebrew_asr.units import count

    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    clips = read_manifest(Path(recipe["data"]["folder"]) / "eval.jsonl", allow_outside=True)
    drawn = random.sample(clips, min(SHOWN_CLIPS, len(clips)))
    transcriber = Transcriber.load(str(folder))
    said = [clip.transcript for clip in drawn]
    heard = [transcriber.transcribe(clip.audio).text for clip in drawn]
    _say(f"{len(drawn)} clips drawn at random, as the model hears them; [words] that differ, [–] where one is missing")
    for reference, hypothesis in zip(said, heard, strict=True):
        print(f"said:  {reference}\nheard: {marked(reference, hypothesis)}\n")
    errors = count_errors(said, heard)
    wrong = count(errors.word_edits, "error")
    print(f"WER of these {len(drawn)}: {errors.wer:.1%} ({wrong} in {errors.words} words)\n")
    print(next_commands(folder, str(Path(drawn[0].audio).resolve())), flush=True)


def marked(reference: str, hypothesis: str) -> str:
    """A transcript without punctuation, its errors in brackets: ``[word]`` if wrong, ``[–]`` where one is missing."""
    from hebrew_asr.report.analysis import align

    edits = align(reference, hypothesis, "strict")
    return " ".join(edit.hypothesis if edit.kind == "equal" else f"[{edit.hypothesis or '–'}]" for edit in edits)
