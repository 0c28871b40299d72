"""What a manifest of millions of clips costs: each rank until it trains, the split, the audit, a plan.

    python -m tests.benchmarks.manifest_scale --clips 200000 1000000 5000000 --ranks 1 2 8 [--model DIR]

The manifest is drawn: sentences of words from 500,000 (frequencies after Zipf), lengths as in the crowd corpora, and a
hundredth as many clips to evaluate on. There is no audio, and no model. Ranks are processes that do with it what a
training rank does before its first step. The split is that of as many records of prepared clips. The audit decodes
nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow

from hebrew_asr.data.clips import COLUMNS, Clips, compute
from hebrew_asr.data.manifest import open_manifest
from hebrew_asr.data.mapped import mapped_path, write_mapped
from hebrew_asr.files import xxh3_of
from hebrew_asr.sources import unit_name
from hebrew_asr.text.prompt import build_target

_WORDS, _MEAN_WORDS, _CLIPS_PER_FOLDER = 500_000, 9.5, 10_000
_ROWS_PER_UNIT = 1000
_MIB = 1 << 20
_HEADER = (
    "| clips | JSON lines, Arrow | ranks | ready, s (CPU) | of which open, shapes, vocabulary | deal, ms (CPU) "
    "| own MiB (peak) | shared MiB |"
)
_PARENT = "| rows | store | assembled, s (CPU) | written, s (CPU) | own MiB peak | bytes a row | mapped MiB peak |"
_OTHERS = {
    "files": _PARENT,
    "shards": _PARENT,
    "split": "| clips | records, s (CPU) | split, s (CPU) | file, MiB | own MiB | peak | components | eval clips |",
    "audit": "| clips | audit, s (CPU of all its processes) | own MiB peak | problems |",
    "plan": "| clips | plan, s (CPU) | own MiB peak |",
    "order": "| clips | first deal of an epoch, s (CPU) | own MiB peak | with a mixture, s (CPU) | own MiB peak |",
}
"""What is measured beside ranks, with the head of its table."""


def draw_set(folder: Path, count: int) -> None:
    """Write both manifests of a set of ``count`` clips to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_manifest(folder / "train.jsonl", count)
    draw_manifest(folder / "eval.jsonl", count // 100, seed=1)


def draw_manifest(path: Path, count: int, seed: int = 0) -> None:
    """Write a manifest of ``count`` clips as JSON lines, and its Arrow file, without making a clip."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer("אבגדהוזחטיכלמנסעפצקרשת".encode("utf-16-le"), np.uint16)
    words = pyarrow.array(
        [rng.choice(letters, size).tobytes().decode("utf-16-le") for size in rng.integers(2, 9, _WORDS)],
        pyarrow.string(),
    )
    starts = range(0, count, 250_000)
    texts = pyarrow.concat_arrays([_sentences(rng, words, min(250_000, count - first)) for first in starts])
    rows = np.arange(count)
    names = _joined(pyarrow.array(rows), ".flac")
    codes = (rows // _CLIPS_PER_FOLDER).astype(np.int32)
    head = f"clips/crowd{seed or ''}"
    folders = pyarrow.array([f"{head}/{code:05d}/" for code in range(int(codes[-1]) + 1)], pyarrow.large_string())
    paths = _joined(folders.take(pyarrow.array(codes)), names)
    ids = _joined("crowd/", paths)
    seconds = np.round(rng.gamma(1.9, 4.65 / 1.9, count).clip(0.5, 15.0), 4)
    groups = _joined(f"speaker{seed or ''}-", pyarrow.array(rng.integers(0, 20_000, count)))
    _write_lines(path, paths, texts, ids, seconds, groups)
    folder = pyarrow.DictionaryArray.from_arrays(pyarrow.array(codes), folders.cast(pyarrow.large_binary()))
    whole = pyarrow.array(np.zeros(count, np.int64))
    columns = [folder, names.cast(pyarrow.large_binary()), texts, ids, pyarrow.array(seconds), groups, whole, whole]
    batch = pyarrow.record_batch(columns, schema=COLUMNS)
    write_mapped(mapped_path(path), Clips(batch, [""] * len(folders)), xxh3_of(path))


def _joined(*parts: str | pyarrow.Array) -> pyarrow.Array:
    kind = pyarrow.large_string()
    cast = [pyarrow.scalar(part, kind) if isinstance(part, str) else part.cast(kind) for part in parts]
    return compute.binary_join_element_wise(*cast, pyarrow.scalar("", kind))


def _sentences(rng: np.random.Generator, words: pyarrow.Array, count: int) -> pyarrow.Array:
    sizes = 1 + rng.poisson(_MEAN_WORDS, count)
    drawn = np.exp(rng.uniform(0, np.log(_WORDS), int(sizes.sum()))).astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    lists = pyarrow.ListArray.from_arrays(bounds, words.take(pyarrow.array(drawn)))
    return _joined(build_target(""), compute.binary_join(lists, " "))


def _write_lines(
    path: Path,
    paths: pyarrow.Array,
    texts: pyarrow.Array,
    ids: pyarrow.Array,
    seconds: np.ndarray,
    groups: pyarrow.Array,
) -> None:
    shown = [json.dumps(value) for value in seconds.tolist()]
    with path.open("w", encoding="utf-8") as stream:
        for first in range(0, len(shown), 100_000):
            part = slice(first, first + 100_000)
            columns = (column[part].to_pylist() for column in (paths, texts, ids, groups))
            for audio, text, identity, group, duration_s in zip(*columns, shown[part], strict=True):
                stream.write(
                    f'{{"audio": "{audio}", "text": "{text}", "id": "{identity}", "duration_s": {duration_s}, '
                    f'"group": "{group}"}}\n'
                )


class _Memory:
    """Anonymous memory, which is a process's own, against pages of mapped files, which processes share."""

    def __init__(self) -> None:
        self.before, self.peak = self.own(), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def own() -> int:
        return _status("RssAnon")

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self.own())


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def rank_main(path: Path, rank: int, ranks: int, model: str) -> None:
    """What a training rank does with a manifest before its first step; prints its figures as JSON."""
    import torch

    from hebrew_asr.audio.frames import EncoderGeometry
    from hebrew_asr.config.batching import Batching
    from hebrew_asr.config.recipe import load_recipe
    from hebrew_asr.data.loader import StepDataset
    from hebrew_asr.data.vocabulary import training_vocabulary
    from hebrew_asr.engine.dist import Ranks
    from hebrew_asr.model.load import load_tokenizer
    from tests.support.native import build

    meeting = f"file://{path.with_suffix('.ranks')}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    together = Ranks(rank, ranks, torch.device("cpu"), torch.distributed.group.WORLD)
    tokenizer = load_tokenizer(model) if model else build()[1]
    recipe, batching = load_recipe("round2"), Batching(64, ranks, 1, 64 // ranks)
    memory, figures = _Memory(), {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started, used = time.monotonic(), time.process_time()
        yield
        figures[name] = round(time.monotonic() - started, 3), round(time.process_time() - used, 3)

    with timed("all"):
        with timed("open"):
            clips = open_manifest(path, check_audio=False)
        with timed("checks"):
            assert clips.durations_s.max() <= 30 and clips.fingerprint
        with timed("shapes"):
            dataset = StepDataset(clips, batching, recipe, tokenizer, EncoderGeometry(), rank)
            dataset.fix_shapes(recipe.epochs * dataset.steps_per_epoch, ranks=together)
        with timed("vocabulary"):
            training_vocabulary(tokenizer, clips, rank, ranks)
        with timed("first step dealt"):
            dataset._sampler.deal(0)
    started, used = time.monotonic(), time.process_time()
    for step in range(1, 1001):
        dataset._sampler.deal(step)
    dealt_s, dealt_cpu_s = time.monotonic() - started, time.process_time() - used
    own = memory.own()
    print(
        json.dumps(
            {
                "seconds": figures,
                "deal_ms": dealt_s,
                "deal_cpu_ms": dealt_cpu_s,
                "own_mib": (own - memory.before) / _MIB,
                "peak_mib": (memory.peak - memory.before) / _MIB,
                "process_mib": own / _MIB,
                "shared_mib": _status("RssFile") / _MIB,
            }
        )
    )


class Cost:
    """What this process and its children take from now on."""

    def __init__(self) -> None:
        self.memory, self._then = _Memory(), self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        used = os.times()
        return time.monotonic(), used.user + used.system + used.children_user + used.children_system

    def told(self) -> str:
        """Wall and CPU seconds since this was asked last."""
        now = self._now()
        wall_s, cpu_s = (after - before for after, before in zip(now, self._then, strict=True))
        self._then = now
        return f"{wall_s:.1f} ({cpu_s:.1f})"

    @property
    def peak_mib(self) -> float:
        """Most that was added to the memory of this process."""
        return (max(self.memory.peak, self.memory.own()) - self.memory.before) / _MIB


def draw_work(folder: Path, store: str) -> Path:
    """What workers leave of the clips of a manifest for ``prepare`` to assemble; its folder.

    One row of ten is dropped, one of 101 has the sound of another. Clips are of 64 bytes that are no sound.
    """
    from hebrew_asr.corpus.preparation.parts import Record, part_path, write_part

    out = folder / store
    if (out / ".work" / "parts").is_dir():
        return out
    rows = enumerate(open_manifest(folder / "train.jsonl", check_audio=False))
    for number, of_unit in enumerate(iter(lambda: list(islice(rows, _ROWS_PER_UNIT)), [])):
        name = unit_name(_Drawn(number * _ROWS_PER_UNIT))
        records, sounds = [], bytearray()
        for row, clip in of_unit:
            record = Record("dropped", f"crowd/{clip.id}", number, row, clip.duration_s, clip.transcript)
            record.reason = "" if row % 10 else "noisy"
            record.groups = (f"speaker:{clip.group}", f"uuid:{clip.id}")
            if not record.reason:
                content = hashlib.blake2b(f"{row - row % 101 // 100}".encode()).digest()
                record.fate, record.words, record.size_bytes = "kept", clip.transcript, len(content)
                record.audio = f"clips/crowd/{number:05d}/{row:06d}.flac"
                record.fingerprint = hashlib.md5(content).hexdigest()
                if store == "shards":
                    record.held, record.offset_bytes = f".work/sounds/{name}.flac", len(sounds)
                    sounds += content
                else:
                    (out / record.audio).parent.mkdir(parents=True, exist_ok=True)
                    (out / record.audio).write_bytes(content)
            records.append(record)
        if sounds:
            (out / ".work" / "sounds" / "crowd").mkdir(parents=True, exist_ok=True)
            (out / ".work" / "sounds" / f"{name}.flac").write_bytes(sounds)
        write_part(part_path(out / ".work", name), records)
    return out


@dataclass
class _Drawn:
    first_row: int
    dataset: str = "crowd"
    shard: int = 0


def measure_parent(folder: Path, store: str) -> str:
    """Make the set of what :func:`draw_work` left, as the parent process of ``prepare`` does."""
    from hebrew_asr.corpus.preparation import shards
    from hebrew_asr.corpus.preparation.options import PrepareOptions
    from hebrew_asr.corpus.preparation.output import write_set
    from hebrew_asr.corpus.preparation.workers import Workers
    from hebrew_asr.corpus.prepare import _assembled
    from hebrew_asr.sources import Source

    shards.SHARD_BYTES = 1_000_000  # some 15,000 clips, as of 1 GiB of real ones
    out = folder / store
    count = sum(1 for _ in (folder / "train.jsonl").open("rb"))
    cost = Cost()
    options = PrepareOptions(source=("crowd",), out=out, store=store, exclude=())
    units = [_Drawn(first) for first in range(0, count, _ROWS_PER_UNIT)]
    assembly = _assembled(units, options, out, out / ".work")
    assembled = cost.told()
    with Workers(1, out / ".work") as workers:
        write_set(out, assembly, [Source("crowd", "drawn", ())], options, options.identity(), workers)
    written, peak = cost.told(), cost.peak_mib
    mapped = _status("VmHWM") / _MIB
    return f"{store} | {assembled} | {written} | {peak:,.0f} | {peak * _MIB / count:,.0f} | {mapped:,.0f}"


def measure_split(folder: Path) -> str:
    """Split records of the clips of a manifest, as ``prepare`` does."""
    from hebrew_asr.corpus.preparation.assemble import assemble
    from hebrew_asr.corpus.preparation.options import PrepareOptions
    from hebrew_asr.corpus.preparation.parts import Record
    from hebrew_asr.data.records import Records

    clips = open_manifest(folder / "train.jsonl", check_audio=False)
    cost = Cost()
    found = (
        Record(
            "kept",
            f"set/{clip.id}",
            0,
            row,
            clip.duration_s,
            clip.transcript,
            audio=clip.audio,
            fingerprint=hashlib.md5(clip.id.encode()).hexdigest(),
            words=clip.transcript,
            groups=(f"speaker:{clip.group}", f"uuid:{clip.id}"),
        )
        for row, clip in enumerate(clips)
    )
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        records = Records(Record, found, Path(temporary) / "records.arrow")
        mapped_mib = (Path(temporary) / "records.arrow").stat().st_size / _MIB
    read, held_mib = cost.told(), (cost.memory.own() - cost.memory.before) / _MIB
    assembly = assemble(records, PrepareOptions())
    took = cost.told()
    counts = f"{assembly.split['components']:,} | {len(assembly.eval):,}"
    return f"{read} | {took} | {mapped_mib:,.0f} | {held_mib:,.0f} | {cost.peak_mib:,.0f} | {counts}"


def measure_audit(folder: Path) -> str:
    """Audit a set without decoding, and write the page."""
    from hebrew_asr.audit.audit import audit
    from hebrew_asr.audit.page import write_audit

    cost = Cost()
    found = audit(folder, decodes=False)
    with tempfile.TemporaryDirectory() as temporary:
        write_audit(found, Path(temporary))
    return f"{cost.told()} | {cost.peak_mib:,.0f} | {len(found.problems)}"


def measure_plan(folder: Path) -> str:
    """Plan a run on a set."""
    from hebrew_asr.config.profiles import load_profile
    from hebrew_asr.config.recipe import load_recipe
    from hebrew_asr.planning.plan import make_plan

    cost = Cost()
    make_plan(load_recipe("round2", [f"data.folder={folder}"]), load_profile("a100x8"), 8)
    return f"{cost.told()} | {cost.peak_mib:,.0f}"


def measure_order(folder: Path) -> str:
    """Put the clips of an epoch in order, as each process that reads does; then a mixture: half of them, twice each."""
    from hebrew_asr.config.batching import Batching
    from hebrew_asr.data.sampler import StepSampler

    seconds, found = open_manifest(folder / "train.jsonl", check_audio=False).durations_s, []
    half = np.arange(len(seconds) // 2, dtype=np.uint32)
    for mixture in (None, lambda _: np.concatenate([half, half])):
        cost = Cost()
        StepSampler(seconds, Batching(64, 8, 1, 8), 0, mixture).deal(0)
        found.append(f"{cost.told()} | {cost.peak_mib:,.0f}")
    return " | ".join(found)


def main() -> None:
    """Print the tables, a line for each number of clips and of ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, nargs="+", default=[200_000, 1_000_000, 5_000_000])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 8])
    parser.add_argument("--others", nargs="*", choices=_OTHERS, default=[*_OTHERS], help="measured too")
    parser.add_argument("--model", default="", help="folder whose tokenizer is used; a tiny one unless given")
    parser.add_argument("--folder", type=Path, help="keeps the sets here, and takes those that are there")
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--here", choices=_OTHERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return rank_main(arguments.folder, *arguments.rank, arguments.model)
    if arguments.here:
        parent = {store: partial(measure_parent, store=store) for store in ("files", "shards")}
        measures = parent | {
            "split": measure_split,
            "audit": measure_audit,
            "plan": measure_plan,
            "order": measure_order,
        }
        print(measures[arguments.here](arguments.folder))
        return None
    with tempfile.TemporaryDirectory() as temporary:
        sets = {count: (arguments.folder or Path(temporary)) / str(count) for count in arguments.clips}
        for count, folder in sets.items():
            if not mapped_path(folder / "eval.jsonl").is_file():
                draw_set(folder, count)
        for name in ["ranks", *arguments.others]:
            header = _OTHERS.get(name, _HEADER)
            print(f"{header}\n{'|---' * (header.count('|') - 1)}|", flush=True)
            for count, folder in sets.items():
                if name == "ranks":
                    for ranks in arguments.ranks:
                        print(_line(folder / "train.jsonl", count, ranks, arguments.model), flush=True)
                else:  # in a process of its own, whose memory is its alone
                    if name in ("files", "shards"):
                        draw_work(folder, name)
                    command = [sys.executable, "-m", __spec__.name, "--folder", str(folder), "--here", name]
                    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
                    print(f"| {count:,} | {told} |", flush=True)
    return None


def _line(path: Path, count: int, ranks: int, model: str) -> str:
    path.with_suffix(".ranks").unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name, "--folder", str(path), "--model", model, "--rank"]
    running = [
        subprocess.Popen([*command, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    worst = {key: max(one[key] for one in found) for key in found[0] if key != "seconds"}
    seconds = {key: max(one["seconds"][key] for one in found) for key in found[0]["seconds"]}
    parts = ", ".join(f"{seconds[key][0]:.1f}" for key in ("open", "shapes", "vocabulary"))
    sizes = ", ".join(f"{file.stat().st_size / _MIB:,.0f} MiB" for file in (path, mapped_path(path)))
    return (
        f"| {count:,} | {sizes} | {ranks} | {seconds['all'][0]:.1f} ({seconds['all'][1]:.1f}) | {parts} | "
        f"{worst['deal_ms']:.3f} ({worst['deal_cpu_ms']:.3f}) | "
        f"{worst['own_mib']:.0f} ({worst['peak_mib']:.0f}) | {worst['shared_mib']:,.0f} |"
    )


if __name__ == "__main__":
    main()
