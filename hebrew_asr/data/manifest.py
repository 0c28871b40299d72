"""The JSONL manifest: what preparation writes and training reads.

One clip a line, in the schema of the official Qwen3-ASR fine-tuning script (``audio``, ``text``) plus our own fields::

    {"audio": "clips/0001.flac", "text": "language Hebrew<asr_text>שלום", "id": "…", "duration_s": 1.5, "group": "…"}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hebrew_asr.errors import DataError
from hebrew_asr.files import write_atomically
from hebrew_asr.text.prompt import parse_target


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance."""

    audio: str
    """Path of the audio file; relative paths start at the manifest's folder."""
    text: str
    """Target in the official form, ``language Hebrew<asr_text>{transcript}``."""
    id: str
    """Unique in the manifest; seeds the clip's augmentation."""
    duration_s: float
    """Length of the decoded audio in seconds."""
    group: str = ""
    """Speaker, session or source; the split never puts one group on both sides."""

    @property
    def transcript(self) -> str:
        """The text without its ``language …<asr_text>`` prefix."""
        return parse_target(self.text)[1]


def read_manifest(path: str | Path, *, check_audio: bool = True, allow_outside: bool = False) -> list[Clip]:
    """Read a manifest; audio paths come back absolute.

    Args:
        path: the ``.jsonl`` file.
        check_audio: also require every audio file to exist.
        allow_outside: accept relative audio paths that leave the manifest's folder.

    Raises:
        DataError: the file is missing or empty, or some lines are wrong (the first five are named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"manifest not found: {path}. Prepare one with `hebrew-asr prepare`, or give --data another folder"
        )
    clips: list[Clip] = []
    problems: list[str] = []
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                clip = _clip_of(line, number, path.parent, check_audio, allow_outside)
                if clip.id in seen:
                    raise ValueError(f"id {clip.id!r} occurs twice")
            except (ValueError, TypeError, KeyError) as error:
                problems.append(f"line {number}: {error}")
                continue
            seen.add(clip.id)
            clips.append(clip)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(f"manifest {path}: {'; '.join(problems[:5])}{more}")
    if not clips:
        raise DataError(f"manifest {path} holds no clips")
    return clips


def _clip_of(line: str, number: int, folder: Path, check_audio: bool, allow_outside: bool) -> Clip:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    missing = [key for key in ("audio", "text") if not isinstance(row.get(key), str)]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)}")
    if not parse_target(row["text"])[1].strip():
        raise ValueError("the transcript is empty")
    audio = Path(row["audio"])
    if not audio.is_absolute():
        resolved = (folder / audio).resolve()
        if not allow_outside and not resolved.is_relative_to(folder.resolve()):
            raise ValueError(f"audio path {row['audio']!r} leaves the manifest's folder")
        audio = resolved
    if check_audio and not audio.is_file():
        raise ValueError(f"audio file not found: {audio}")
    duration_s = row.get("duration_s")
    if duration_s is None:
        duration_s = _duration_of(audio)
    if not isinstance(duration_s, int | float) or not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s!r}, not a positive number of seconds")
    identity = str(row.get("id") or f"{row['audio']}#{number}")
    return Clip(str(audio), row["text"], identity, float(duration_s), str(row.get("group", "")))


def _duration_of(audio: Path) -> float:
    """Manifests of the official script carry no duration: read it from the header."""
    import soundfile

    try:
        return soundfile.info(str(audio)).duration
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"cannot read audio {audio}: {error}") from error


def fingerprint(clips: Iterable[Clip]) -> str:
    """Of what the order and the content of training follow from: ids, durations and texts, not where files lie."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.id}\t{clip.duration_s!r}\t{clip.text}\n".encode())
    return digest.hexdigest()


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest atomically; audio paths inside its folder become relative to it."""
    path = Path(path)
    folder = path.parent.resolve()
    rows = []
    for clip in clips:
        audio = Path(clip.audio)
        if audio.is_absolute() and audio.is_relative_to(folder):
            clip = replace(clip, audio=str(audio.relative_to(folder)))
        rows.append(json.dumps(asdict(clip), ensure_ascii=False))
    write_atomically(path, "".join(f"{row}\n" for row in rows))
