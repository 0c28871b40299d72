"""Small corpora with the real schemas: parquet shards as the hub has them, and folders as people keep them.

Audio is deterministic noise shaped like syllables: no two seeds decode to the same samples, and mp3 keeps it audible.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CROWD_TRANSCRIBE = pa.schema(
    [
        ("uuid", pa.string()),
        ("audio", AUDIO),
        ("orig_sentence", pa.string()),
        ("sentence", pa.string()),
        ("is_retranscribe", pa.bool_()),
        ("transcriber", pa.int64()),
        (
            "extra_data",
            pa.struct(
                [
                    ("attributes", pa.struct([("retranscribe", pa.bool_())])),
                    ("duration", pa.float64()),
                    ("foreign_language", pa.bool_()),
                    ("max_logprob", pa.float64()),
                    ("multiple_speakers", pa.bool_()),
                    ("noisy", pa.bool_()),
                    ("orig_text", pa.string()),
                    ("skipped", pa.bool_()),
                    (
                        "stats",
                        pa.struct(
                            [
                                ("numFullPlays", pa.int64()),
                                ("numPauseClicks", pa.int64()),
                                ("numPlayClicks", pa.int64()),
                                ("referer", pa.string()),
                                ("time", pa.float64()),
                                ("user_agent", pa.string()),
                            ]
                        ),
                    ),
                    ("text", pa.string()),
                    ("too_long", pa.bool_()),
                    ("unintelligible", pa.bool_()),
                ]
            ),
        ),
    ]
)
"""Card of ivrit-ai/crowd-transcribe-v5."""

RECITAL = pa.schema(
    [
        ("audio", AUDIO),
        ("transcript", pa.string()),
        (
            "metadata",
            pa.struct(
                [
                    ("seek", pa.float32()),
                    ("duration", pa.float32()),
                    ("source", pa.string()),
                    ("entry_id", pa.string()),
                    ("quality_score", pa.float32()),
                ]
            ),
        ),
        ("has_prev", pa.bool_()),
        ("has_timestamps", pa.bool_()),
        ("prev_transcript", pa.string()),
    ]
)
"""``create_dataset.py`` of ivrit-ai/asr-training."""

COMMON_VOICE = pa.schema(
    [
        ("client_id", pa.string()),
        ("path", pa.string()),
        ("audio", AUDIO),
        ("sentence", pa.string()),
        ("up_votes", pa.int64()),
        ("down_votes", pa.int64()),
        ("age", pa.string()),
        ("gender", pa.string()),
        ("accent", pa.string()),
        ("locale", pa.string()),
        ("segment", pa.string()),
    ]
)
FLEURS = pa.schema(
    [
        ("id", pa.int32()),
        ("num_samples", pa.int32()),
        ("path", pa.string()),
        ("audio", AUDIO),
        ("transcription", pa.string()),
        ("raw_transcription", pa.string()),
        ("gender", pa.int64()),
        ("lang_id", pa.int64()),
        ("language", pa.string()),
        ("lang_group_id", pa.int64()),
    ]
)
SASPEECH = pa.schema([("audio", AUDIO), ("text", pa.string())])
WHISPER_TRAINING = pa.schema(
    [("uuid", pa.string()), ("audio", AUDIO), ("orig_text", pa.string()), ("text", pa.string())]
)

_VOCABULARY = """
היום אתמול מחר אנחנו הלכנו ראינו שמענו ילד ילדה בית ספר עיר גדולה קטנה ירוק אדום שמש ירח מים לחם חלב בוקר ערב לילה כלב
חתול ציפור עץ פרח דרך ארוכה קצרה שולחן כיסא חלון דלת מכתב סיפור שיר חדש ישן טוב יפה מאוד כבר עדיין תמיד לפעמים
"""
_WORDS = _VOCABULARY.split()


def sentence(seed: int, words: int = 7) -> str:
    """Distinct Hebrew word salad."""
    return " ".join(np.random.default_rng([seed, 7]).choice(_WORDS, words))


@lru_cache(maxsize=64)
def voice(seed: int, duration_s: float, rate_hz: int = 44_100, channels: int = 1) -> np.ndarray:
    """Noise in syllables, float32 of shape (samples,) or (samples, channels); read-only, as many tests have it."""
    rng = np.random.default_rng([seed, 1])
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * rng.uniform(120, 3000) * time_s + rng.uniform(0, 6)) for _ in range(4))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(3, 5) * time_s)
    mono = (0.08 * tone * syllables + 0.01 * rng.standard_normal(len(time_s))).astype(np.float32)
    samples = mono if channels == 1 else np.stack([mono * (1 - 0.2 * c) for c in range(channels)], axis=1)
    samples.flags.writeable = False
    return samples


def encode(samples: np.ndarray, rate_hz: int = 44_100, audio: str = "mp3") -> bytes:
    """Samples as the content of a wav, flac, mp3, ogg or opus file."""
    formats = {"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", None)}
    container, subtype = formats.get(audio, (audio.upper(), "PCM_16"))
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=container, subtype=subtype)
    return stream.getvalue()


@lru_cache(maxsize=512)
def speech(seed: int, duration_s: float = 2.0, audio: str = "mp3") -> bytes:
    """One encoded utterance."""
    return encode(voice(seed, duration_s), audio=audio)


def crowd_row(
    uuid: str,
    seed: int,
    *,
    text: str | None = None,
    duration_s: float = 2.0,
    content: bytes | None = None,
    retake: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """One row of crowd-transcribe-v5; ``extra`` are fields of extra_data such as ``noisy=True``."""
    text = sentence(seed) if text is None else text
    flags = ("foreign_language", "multiple_speakers", "noisy", "skipped", "too_long", "unintelligible")
    stats = {
        "numFullPlays": 1,
        "numPauseClicks": 0,
        "numPlayClicks": 1,
        "referer": "",
        "time": 9.5,
        "user_agent": "Mozilla",
    }
    return {
        "uuid": uuid,
        "audio": {"bytes": speech(seed, duration_s) if content is None else content, "path": f"{seed}.mp3"},
        "orig_sentence": text,
        "sentence": text,
        "is_retranscribe": retake,
        "transcriber": 3,
        "extra_data": {
            "attributes": {"retranscribe": retake},
            "duration": duration_s,
            "max_logprob": -0.2,
            "orig_text": text,
            "stats": stats,
            "text": text,
            **dict.fromkeys(flags, False),
            **extra,
        },
    }


def recital_row(entry: str, seed: int, transcript: str, duration_s: float, **metadata: Any) -> dict[str, Any]:
    """One slice of crowd-recital-whisper-training: mp3 at 16 kHz."""
    content = encode(voice(seed, duration_s, 16_000), 16_000)
    fields = {"seek": 0.0, "duration": 30.0, "source": "crowd-recital", "entry_id": entry, "quality_score": 0.9}
    return {
        "audio": {"bytes": content, "path": entry},
        "transcript": transcript,
        "metadata": {**fields, **metadata},
        "has_prev": False,
        "has_timestamps": "<|" in transcript,
        "prev_transcript": "",
    }


def timed(*segments: tuple[float, float, str], dangling_s: float | None = None) -> str:
    """Whisper text with timestamp tokens, and at will the lone start time of an unfinished segment."""
    text = "".join(f"<|{start:.2f}|> {words}<|{end:.2f}|>" for start, end, words in segments)
    return text if dangling_s is None else f"{text}<|{dangling_s:.2f}|>"


def write_shard(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    schema: pa.Schema,
    name: str = "train-00000-of-00001",
    group: int = 100,
) -> Path:
    """Write ``folder/data/{name}.parquet`` in row groups of ``group`` rows, as the hub does."""
    path = folder / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path, row_group_size=group)
    return path


def write_crowd_shards(folder: Path, rows: Sequence[dict[str, Any]], count: int) -> None:
    """Deal rows of :func:`crowd_row` to ``count`` shards, in row groups of 4."""
    for shard in range(count):
        write_shard(folder, rows[shard::count], CROWD_TRANSCRIBE, f"train-{shard:05d}-of-{count:05d}", 4)


def write_crowd(folder: Path, clips: int, *, shards: int = 2, episodes: int = 12, group: int = 5) -> Path:
    """A clean crowd-transcribe corpus of several sources and episodes; returns ``folder``."""
    rows = [
        crowd_row(f"Source{i % episodes % 4}/ep{i % episodes}/{i}", i, duration_s=1.5 + i % 3 * 0.5)
        for i in range(clips)
    ]
    for shard in range(shards):
        part = rows[shard * clips // shards : (shard + 1) * clips // shards]
        write_shard(folder, part, CROWD_TRANSCRIBE, f"train-{shard:05d}-of-{shards:05d}", group)
    return folder


def write_pairs(folder: Path, clips: dict[str, tuple[bytes, str]]) -> Path:
    """A folder of ``name`` beside ``name`` with .txt; returns ``folder``."""
    for name, (content, text) in clips.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its relative path: what "byte-identical" compares."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def small_prepare(folder: Path, *limits: str) -> Path:
    """A script that is ``hebrew-asr prepare`` with other limits, so that a small corpus has several of each part.

    Args:
        folder: where the script is written.
        limits: such as ``sources.parquet.ROWS_PER_UNIT = 8``, of a module of ``hebrew_asr``.
    """
    modules = [limit.partition(" = ")[0].rpartition(".")[0] for limit in limits]
    lines = ["import os, sys", *(f"import hebrew_asr.{module}" for module in modules)]
    lines += ["from hebrew_asr.cli import main", 'if __name__ == "__main__":']
    lines += [
        *(f"    hebrew_asr.{limit}" for limit in limits),
        '    sys.argv.insert(1, "prepare")',
        "    sys.exit(main())",
        "",
    ]
    script = folder / "small_prepare.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    return script
