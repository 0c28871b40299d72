"""Everything that ``prepare`` can be asked, and nothing that it needs to run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from annotated_types import Interval, MinLen

from hebrew_asr.config.options import Out, option_problems
from hebrew_asr.config.values import NonNegativeFloat, PositiveFloat, Processes
from hebrew_asr.errors import UsageError
from hebrew_asr.files import real_path

RECIPE_SOURCES = ("ivrit-ai/crowd-transcribe-v5", "ivrit-ai/crowd-recital-whisper-training")
DEFAULT_FOLDER = Path("qwen3_asr_round2_data")
_SCHEDULER = re.compile(r"(tcp|tls)://[^/:@]+:(?P<port>\d{1,5})")
_RISING = (
    ("min_duration_s", "max_duration_s"),
    ("recut_min_s", "recut_max_s"),
    ("min_chars_per_s", "max_chars_per_s"),
)


@dataclass
class PrepareOptions:
    """What to prepare, and how."""

    IDLE: ClassVar = ("hold-out with split=random", "processes with workers-on")
    source: Annotated[tuple[str, ...], MinLen(1)] = RECIPE_SOURCES
    """Hub ids (owner/name[:config][@revision]); parquet files or folders of them, at URLs too (https, s3, gs, hf: pip
    install 'hebrew-asr[remote]'); folders of audio with texts, listings or Kaldi tables; JSON, CSV or TSV files."""
    out: Out[Path] = DEFAULT_FOLDER
    """Folder to make: train.jsonl, eval.jsonl, clips/, dropped.jsonl, manifest.json and, when all is done, _SUCCESS."""
    processes: Processes | None = None
    """Worker processes; by default one per usable core. The result does not depend on it."""
    workers_on: str | None = None
    """Address of a Dask scheduler, such as tcp://node1:8786, whose workers convert instead of processes of this machine
    (pip install 'hebrew-asr[cluster]'). All of them must see the sources and --out under the same paths."""
    audio: Literal["flac", "wav"] = "flac"
    """flac: half the size, paths relative to the folder. wav: as the official Qwen3-ASR script reads it, with absolute
    paths. Both are 16 kHz, mono, 16 bit."""
    store: Literal["files", "shards"] = "files"
    """files: a file for each clip. shards: parquet files of up to 1 GiB, as ``load_dataset`` and the hub take them, for
    hundreds of hours and more: many file systems bear no millions of files. While they are made, the disk holds the
    sound twice. Training reads either at the same speed, and learns the same from it."""
    split: Literal["leak-free", "random"] = "leak-free"
    """leak-free: nothing that belongs together is on both sides. random: rows, as many scripts do, which leaks;
    of clips where there is one row only, as with one long recording."""
    hold_out: Literal["source", "episode"] = "source"
    """What leak-free keeps whole: all of a podcast (its host recurs), or each episode. Where fewer than five podcasts
    make up the evaluation share, episodes are taken. Recording sessions, speakers, repeated recordings, equal audio and
    equal sentences are kept whole either way."""
    group_by_name: bool = False
    """Recordings of which nothing says who speaks are one group where their names differ in a running number only, as
    talk_001 and talk_002 do. Better are sub-folders, or a column for the speaker, session or source."""
    eval_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    """Share of the clips for evaluation; 0 for none."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 42
    """Chooses which groups are evaluated on."""
    min_duration_s: NonNegativeFloat = 0.5
    """Shorter clips are dropped."""
    max_duration_s: PositiveFloat = 15.0
    """Longer clips are dropped, unless their text has timestamps to cut at."""
    recut_min_s: PositiveFloat = 1.0
    """Shortest clip to cut from a recording with timestamps."""
    recut_max_s: Annotated[float, Interval(gt=0, le=30)] = 15.0
    """Longest clip to cut from a recording with timestamps, up to 30."""
    min_chars_per_s: NonNegativeFloat = 3.0
    """Slower text is dropped as incomplete. The first two seconds of a clip are free, for the silence around a word."""
    max_chars_per_s: PositiveFloat = 25.0
    """Faster text is dropped: nobody speaks it in that time."""
    drop_flags: tuple[str, ...] = (
        "skipped",
        "unintelligible",
        "foreign_language",
        "multiple_speakers",
        "noisy",
        "too_long",
    )
    """Annotators' flags that drop a row."""
    exclude: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[STR [STR ...]]")] = None
    """Test sets, given as sources are: whatever overlaps them is dropped. By default the leaderboard's eval-d1 and
    eval-whatsapp when any source is on the hub. Test and validation shards of the sources themselves always count."""

    def check(self) -> None:
        """Raise UsageError with every impossible value at once."""
        wrong = option_problems(self)
        wrong += [
            f"--{low.replace('_', '-')} ({getattr(self, low)}) must be below --{high.replace('_', '-')} "
            f"({getattr(self, high)})"
            for low, high in _RISING
            if not getattr(self, low) < getattr(self, high)
        ]
        place = _SCHEDULER.fullmatch(self.workers_on or "")
        if self.workers_on is not None and (place is None or not 1 <= int(place["port"]) <= 65_535):
            wrong.append(f"--workers-on {self.workers_on!r} is no address of a scheduler, such as tcp://node1:8786")
        if url := re.fullmatch(r"([a-z0-9+.-]+:/)(.*)", str(self.out), re.DOTALL):  # a Path keeps one slash of two
            wrong.append(f"--out {url[1]}/{url[2]} is a URL: prepare writes here; `aws s3 sync` or the like uploads it")
        out = real_path(self.out)
        if inside := [one for one in self.source if Path(one).is_dir() and out.is_relative_to(real_path(one))]:
            wrong.append(f"--out {self.out} lies in the source {inside[0]}, whose next reader would read it too")
        if self.store == "shards" and self.audio == "wav":
            wrong.append("--store shards holds flac: leave --audio wav out, which is for scripts that open files")
        if wrong:
            raise UsageError("prepare: " + "; ".join(wrong))

    def identity(self) -> dict[str, Any]:
        """The options that decide the result, as JSON values: a folder is only continued with the same ones."""
        own = {field.name for field in fields(PrepareOptions)} - {"out", "processes", "workers_on", "source", "exclude"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if name in own}
