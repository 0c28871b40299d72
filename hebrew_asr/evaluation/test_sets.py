"""The Hebrew leaderboard's sets, from the hub or from a copy on this machine, read through ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hebrew_asr.audio.decode import decode
from hebrew_asr.data.clip_audio import Unreadable
from hebrew_asr.errors import DataError, EnvironmentProblem, HebrewASRError, UsageError, did_you_mean, first_line
from hebrew_asr.evaluation.hearing import Utterance
from hebrew_asr.text.sets import split_of


@dataclass(frozen=True)
class TestSet:
    """Where a set of the leaderboard lies, as its ``run_bench.py`` names it."""

    __test__ = False  # pytest takes the name for its own

    repo: str
    split: str
    config: str | None = None


TEST_SETS = {
    "eval-d1": TestSet("ivrit-ai/eval-d1", "test"),
    "eval-whatsapp": TestSet("ivrit-ai/eval-whatsapp", "test"),
    "saspeech": TestSet("upai-inc/saspeech", "test"),
    "fleurs": TestSet("google/fleurs", "test", "he_il"),
    "common-voice": TestSet("mozilla-foundation/common_voice_17_0", "test", "he"),
    "hebrew-speech-kan": TestSet("imvladikon/hebrew_speech_kan", "validation"),
}
_ANSWER_S = 10.0
_TEXTS = ("text", "sentence", "transcription", "transcript", "raw_transcription")
_GROUPS = ("speaker_id", "client_id", "speaker", "source", "episode")
_IDS = ("uuid", "id", "audio_id", "path")


def open_test_set(spec: str) -> Iterator[Utterance]:
    """Utterances of a set, in its order.

    Args:
        spec: a name of ``TEST_SETS``, ``NAME=PATH`` for a copy of it, or a path: a parquet file, a folder of them
            (those of the test split, if any says so in its path below it), or a folder of ``datasets.save_to_disk``.

    Raises:
        UsageError: there is no such set.
        DataError: it holds no audio and text.
        EnvironmentProblem: the hub cannot give it.
    """
    name, equals, place = spec.partition("=")
    if not equals:
        place = spec if Path(spec).exists() else ""
    if place and not Path(place).exists():
        raise DataError(f"--set {spec}: {place} does not exist")
    name = next((short for short, known in TEST_SETS.items() if known.repo == name), name)
    if not place and name not in TEST_SETS:
        hint = did_you_mean(name, TEST_SETS)
        raise UsageError(f"--set {spec}{hint}: neither a file or folder nor one of {', '.join(TEST_SETS)}")
    source = name if equals or not place else Path(place).resolve().stem
    rows = _local(Path(place)) if place else _from_hub(TEST_SETS[name])
    columns = list(rows.column_names or ())
    text = next((column for column in _TEXTS if column in columns), None)
    if text is None or "audio" not in columns:
        needs = f"a column audio and one of {', '.join(_TEXTS)}"
        raise DataError(f"--set {spec}: needs {needs}; it has {', '.join(columns)}")
    from datasets import Audio

    return _utterances(rows.cast_column("audio", Audio(decode=False)), source, text)


def _utterances(rows: Any, source: str, text: str) -> Iterator[Utterance]:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        key = next((str(row[column]) for column in _IDS if row.get(column) not in (None, "")), "")
        key = f"{source}/{key}" if key and f"{source}/{key}" not in seen else f"{source}/{number:06d}"
        seen.add(key)
        group = next((str(row[column]) for column in _GROUPS if row.get(column) not in (None, "")), "")
        sound = row["audio"] or {}
        read = partial(_read, key, sound.get("bytes") or sound.get("path"))
        yield Utterance(key, str(row[text] or ""), read, group and f"{source}/{group}", source)


def _read(key: str, sound: bytes | str | None) -> np.ndarray | Unreadable:
    if sound is None:
        return Unreadable(key, "the set holds no audio for it")
    try:
        return decode(sound)
    except HebrewASRError as error:
        return Unreadable(key, str(error))
    except Exception as error:  # a decoder may raise anything
        return Unreadable(key, f"cannot decode its audio: {type(error).__name__}: {first_line(error)}")


def _local(path: Path) -> Any:
    import datasets

    def load() -> Any:
        if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            held: Any = datasets.load_from_disk(str(path))
            return held["test"] if isinstance(held, dict) and "test" in held else held
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        named = [file for file in files if split_of(file.relative_to(path).as_posix()) == "test"] or files
        if not named:
            raise DataError(f"{path} holds no parquet files")
        return _streamed("parquet", None, "train", data_files=[str(file) for file in named])

    held = _explained(load, f"{path} cannot be read as a data set", DataError)
    if isinstance(held, dict):
        raise DataError(f"{path} holds the splits {', '.join(held)}; give the folder of one")
    return held


def _from_hub(of: TestSet) -> Any:
    page = f"https://huggingface.co/datasets/{of.repo}"
    message = (
        f"{of.repo} cannot be fetched; check the network, accept its conditions on {page} and set HF_TOKEN if it is "
        f"gated, or give NAME=PATH of a copy"
    )

    def load() -> Any:
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:  # asks once: without a network datasets asks for half a minute
            HfApi().dataset_info(of.repo, timeout=_ANSWER_S)
        return _streamed(of.repo, of.config, of.split)

    return _explained(load, message, EnvironmentProblem)


def _streamed(place: str, config: str | None, split: str, **options: Any) -> Any:
    """Rows that are read when their turn comes, without a second copy on the disk; its columns are known."""
    import datasets

    rows: Any = datasets.load_dataset(place, config, split=split, streaming=True, **options)
    return rows if rows.column_names else rows._resolve_features()


def _explained(load: Callable[[], Any], message: str, kind: type[HebrewASRError]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return load()
    except HebrewASRError:
        raise
    except Exception as error:  # datasets, fsspec and the hub's client share no base class
        raise kind(f"{message} ({type(error).__name__}: {first_line(error)})") from error
