"""How fast ``prepare`` is, against the export that the Round 2 guide describes; prints one table.

    python tests/benchmarks/prepare_speed.py [--clips 4000] [--rounds 3]
    python tests/benchmarks/prepare_speed.py --against TREE --clips 1200    # a checkout of another commit

The corpus has the schema, rate, bit rate and durations of crowd-transcribe-v5 (mp3 at 44.1 kHz, 160 kbit/s, mean about
4.6 s). The guide's method is ported as it stands: ``datasets`` loads the parquet shards, ``map`` normalizes the texts,
``filter`` drops the empty ones, ``train_test_split`` cuts off 5 %, and one process decodes row by row and writes 16 kHz
WAV files with soundfile. It is timed with each decoder that is installed: that of ``datasets`` itself (torchcodec, with
the system's FFmpeg), and ``librosa.load`` or, without librosa, the soundfile and soxr calls that it makes.

Rounds are interleaved and the fastest of each kind counts, since other load on the machine can only slow a run down.
Processor time hardly depends on other load, so what it alone would give on idle cores is printed too, and what each
stage of one clip takes of it: decoding mp3 is most, and every contestant pays it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).parents[2]))
from hebrew_asr.audio.decode import decode, to_int16
from hebrew_asr.corpus.preparation.convert import encode
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.prepare import prepare
from hebrew_asr.sources import open_source
from hebrew_asr.text.normalize import normalize
from tests.support import corpora

CLIPS_OF_ROUND_2 = 200_000
_BITRATE = 160_000
_FRAME_SAMPLES, _RATE_HZ = 1152, 44_100


def build_corpus(folder: Path, clips: int, audio: str = "mp3") -> float:
    """Write two shards of distinct clips, cut from one long sound (mp3 at frame borders); returns their mean s."""
    rng = np.random.default_rng(0)
    stream = np.concatenate([corpora.voice(seed, 5.0) for seed in range(48)])
    frames = list(mp3_frames(_constant_rate_mp3(stream)))
    durations_s = np.clip(rng.gamma(3.2, 1.45, clips), 0.6, 14.9)
    lengths = [round(duration_s * _RATE_HZ / _FRAME_SAMPLES) for duration_s in durations_s]
    starts = [int(rng.integers(0, len(frames) - length)) for length in lengths]
    for shard in range(2):
        rows = []
        for index in range(shard, clips, 2):
            start, stop, duration_s = starts[index], starts[index] + lengths[index], float(durations_s[index])
            content = b"".join(frames[start:stop])
            if audio != "mp3":
                content = corpora.encode(stream[start * _FRAME_SAMPLES : stop * _FRAME_SAMPLES], _RATE_HZ, audio)
            text = corpora.sentence(index, max(2, round(duration_s * 2)))
            uuid = f"Source{index % 40}/ep{index % 200}/{index}"
            rows.append(corpora.crowd_row(uuid, index, text=text, content=content, duration_s=duration_s))
        corpora.write_shard(folder, rows, corpora.CROWD_TRANSCRIBE, f"train-{shard:05d}-of-00002", 100)
    return float(durations_s.mean())


def _constant_rate_mp3(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    options: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 1 - _BITRATE / 320_000}
    soundfile.write(stream, samples, _RATE_HZ, format="MP3", **options)
    return stream.getvalue()


def mp3_frames(content: bytes) -> Iterator[bytes]:
    """MPEG-1 layer III frames (ISO 11172-3, 2.4.1.3), without the Info frame at the start."""
    kbit = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    position = content.index(b"\xff\xfb")
    while position + 4 <= len(content) and content[position] == 0xFF:
        rate, padding = kbit[content[position + 2] >> 4], content[position + 2] >> 1 & 1
        size = 144_000 * rate // _RATE_HZ + padding
        frame = content[position : position + size]
        if b"Info" not in frame[:64] and b"Xing" not in frame[:64]:
            yield frame
        position += size


Decode = Callable[[dict[str, Any]], tuple[np.ndarray, int]]


def guide_export(shards: list[str], folder: Path, decode: Decode, *, by_datasets: bool) -> int:
    """The guide's data preparation (train_hebrew_asr_enhanced.py, February 2026); returns clips written."""
    from datasets import Audio, load_dataset

    rows = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(folder / "cache"))
    rows = rows.rename_column("sentence", "text")
    rows = rows.remove_columns([name for name in rows.column_names if name not in ("audio", "text")])
    rows = rows.cast_column("audio", Audio(sampling_rate=16_000) if by_datasets else Audio(decode=False))

    def clean(row: dict[str, Any]) -> dict[str, Any]:
        text = re.sub(r"<\|[\d.]+\|>", "", row["text"] or "")
        row["text"] = " ".join(re.sub("[\u0591-\u05c7]", "", text).split())
        return row

    rows = rows.map(clean).filter(lambda row: len(row["text"].strip()) > 0)
    sides = rows.train_test_split(test_size=0.05, seed=42)
    (folder / "wavs").mkdir()
    written = 0
    for name, side in (("train", sides["train"]), ("eval", sides["test"])):
        with (folder / f"{name}.jsonl").open("w") as lines:
            for index, row in enumerate(side):
                samples, rate_hz = decode(row["audio"])
                if not 0.5 <= len(samples) / rate_hz <= 15.0:
                    continue
                path = folder / "wavs" / f"{name}_{index:07d}.wav"
                soundfile.write(path, samples, rate_hz)
                lines.write(json.dumps({"audio": str(path), "text": f"language Hebrew<asr_text>{row['text']}"}) + "\n")
                written += 1
    return written


def by_torchcodec(audio: Any) -> tuple[np.ndarray, int]:
    """What ``example["audio"]`` of a dataset gives."""
    return audio["array"], audio["sampling_rate"]


def by_librosa(audio: dict[str, Any]) -> tuple[np.ndarray, int]:
    """``librosa.load(file, sr=16000)``."""
    import librosa

    return librosa.load(io.BytesIO(audio["bytes"]), sr=16_000)


def as_librosa_does(audio: dict[str, Any]) -> tuple[np.ndarray, int]:
    """The calls inside ``librosa.load``: soundfile in float32, mean of the channels, soxr at high quality."""
    samples, rate_hz = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate_hz, 16_000, quality="HQ"), 16_000


def contestants(corpus: Path) -> dict[str, Callable[[Path], int]]:
    """Name and run of each; a run gets an empty folder and returns how many clips it wrote."""
    shards = sorted(map(str, corpus.rglob("*.parquet")))

    def guide(decode: Decode, by_datasets: bool = False) -> Callable[[Path], int]:
        return lambda folder: guide_export(shards, folder, decode, by_datasets=by_datasets)

    def ours(processes: int, audio: str) -> Callable[[Path], int]:
        def run(folder: Path) -> int:
            options = PrepareOptions((str(corpus),), folder / "out", processes, audio)  # type: ignore[arg-type]
            manifest = prepare(options)
            return manifest["train"]["clips"] + manifest["eval"]["clips"]

        return run

    found: dict[str, Callable[[Path], int]] = {}
    if importlib.util.find_spec("torchcodec"):
        found["guide, decoding by datasets (torchcodec)"] = guide(by_torchcodec, by_datasets=True)
    librosa = importlib.util.find_spec("librosa") is not None
    found[f"guide, decoding by {'librosa' if librosa else 'soundfile and soxr'}"] = guide(
        by_librosa if librosa else as_librosa_does
    )
    for audio in ("wav", "flac"):
        for processes in (1, 2):
            found[f"prepare, {audio}, {processes} process{'es' if processes > 1 else ''}"] = ours(processes, audio)
    return found


def against(other: Path, clips: int, rounds: int, scratch: Path) -> None:
    """Print the processor seconds of whole commands of this checkout as a share of another's, run in turns."""
    trees = (other.resolve(), Path(__file__).parents[2])
    for audio in ("mp3", "flac", "wav"):
        build_corpus(scratch / audio, clips, audio)
        pairs = []
        for number in range(rounds):
            used = {}
            for tree in trees if number % 2 else reversed(trees):
                with tempfile.TemporaryDirectory(dir=scratch) as folder, _quiet():
                    words = ["prepare", "--source", str(scratch / audio), "--out", f"{folder}/out", "--processes", "1"]
                    command = [sys.executable, "-m", "hebrew_asr.cli", *words]
                    busy = processor_s()
                    subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True)
                    used[tree] = processor_s() - busy
            pairs.append((used[trees[0]], used[trees[1]]))
        ratios = ", ".join(f"{ours / theirs:.2f}" for theirs, ours in pairs)
        print(f"{audio}: {min(pairs)[0]:.1f} s of processor time there; here times {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=4000, help="clips in the corpus")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contestant runs")
    parser.add_argument("--against", type=Path, help="compare with this checkout instead")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.against:
            against(arguments.against, arguments.clips, arguments.rounds, Path(scratch))
            return
        mean_s = build_corpus(Path(scratch) / "v5", arguments.clips)
        timings = measure(contestants(Path(scratch) / "v5"), Path(scratch), arguments.rounds)
        stages = stage_costs(Path(scratch) / "v5", Path(scratch))
    print_table(timings, arguments.clips, mean_s)
    print("processor ms for each stage of a clip: " + ", ".join(f"{n} {ms:.2f}" for n, ms in stages.items()))


Timing = tuple[float, float]
"""Wall-clock and processor seconds for each clip that a run wrote."""


def measure(runs: dict[str, Callable[[Path], int]], scratch: Path, rounds: int) -> dict[str, list[Timing]]:
    """Time every run, rounds interleaved."""
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder, _quiet():
                started, busy = time.perf_counter(), processor_s()
                clips = run(Path(folder))
                timings[name].append(((time.perf_counter() - started) / clips, (processor_s() - busy) / clips))
            print(f"round {number + 1}: {name}: {1 / timings[name][-1][0]:.0f} clips/s", file=sys.stderr, flush=True)
    return timings


def processor_s() -> float:
    """Processor seconds of this process and of the children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def stage_costs(corpus: Path, scratch: Path, clips: int = 100, rounds: int = 5) -> dict[str, float]:
    """Processor ms for each stage of preparing a clip, the fastest of some rounds for each clip."""
    rows = [row for unit in open_source(str(corpus)).shards[0].units() for _, row in unit.rows()][:clips]
    contents = [row.audio_bytes() for row in rows]
    raw = [soundfile.read(io.BytesIO(content), dtype="float32")[0] for content in contents]
    sounds = [to_int16(decode(content)) for content in contents]
    encoded = [encode(pcm, "flac") for pcm in sounds]
    stages: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "decode mp3": (lambda content: soundfile.read(io.BytesIO(content), dtype="float32"), contents),
        "resample": (lambda samples: soxr.resample(samples, _RATE_HZ, 16_000), raw),
        "encode flac": (lambda pcm: encode(pcm, "flac"), sounds),
        "encode wav": (lambda pcm: encode(pcm, "wav"), sounds),
        "create file": ((scratch / "clip.flac").write_bytes, encoded),
        "text": (lambda row: normalize(normalize(row.text, "target"), "strict"), rows),
    }
    best = {name: [float("inf")] * len(items) for name, (_, items) in stages.items()}
    for _ in range(rounds):
        for name, (stage, items) in stages.items():
            for index, item in enumerate(items):
                started = time.thread_time()
                stage(item)
                best[name][index] = min(best[name][index], time.thread_time() - started)
    return {name: 1000 * sum(values) / len(values) for name, values in best.items()}


class _quiet:
    """The contestants' own reports are not the benchmark's."""

    def __enter__(self) -> None:
        self._saved = os.dup(1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._saved, 1)
        os.close(self._saved)


def print_table(timings: dict[str, list[Timing]], clips: int, mean_s: float) -> None:
    """Clips per second, ratio to each guide row, processor time, and what Round 2 would take at that speed."""
    best = {name: min(wall for wall, _ in values) for name, values in timings.items()}
    busy = {name: min(processor for _, processor in values) for name, values in timings.items()}
    guides = [name for name in best if name.startswith("guide")]
    rounds, load = len(next(iter(timings.values()))), os.getloadavg()[0]
    print(f"\n{clips} clips of mp3 at 44.1 kHz, mean {mean_s:.1f} s; best of {rounds} rounds; {os.cpu_count()} cores")
    print(f"load average at the end {load:.1f}: above 2, other programs slow the rows down, and unequally")
    head = "".join(f"{f'x guide {i + 1}':>11s}" for i in range(len(guides)))
    print(f"{'':44s}{'clips/s':>9s}{head}{'CPU ms/clip':>13s}{'200K clips':>13s}")
    for name, value in best.items():
        ratios = "".join(f"{best[guide] / value:11.2f}" for guide in guides)
        minutes = CLIPS_OF_ROUND_2 * value / 60
        print(f"{name:44s}{1 / value:9.0f}{ratios}{1000 * busy[name]:13.2f}{minutes:9.1f} min")
    for audio in ("wav", "flac"):
        one, two = (best[f"prepare, {audio}, {n}"] for n in ("1 process", "2 processes"))
        print(f"scaling from 1 to 2 processes, {audio}: {one / two:.2f}")
        idle = busy[f"prepare, {audio}, 2 processes"] / 2
        ratios = ", ".join(f"{busy[guide] / idle:.2f} x guide {i + 1}" for i, guide in enumerate(guides))
        print(f"by processor time alone, 2 processes on 2 idle cores give {audio} at most: {ratios}")


if __name__ == "__main__":
    main()
