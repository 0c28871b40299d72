"""Damage valid files at random and decode them: ``python -m tests.support.fuzz SEED FILES_PER_KIND``.

It runs in a process of its own, whose memory is limited: what a decoder does to it is seen from outside. It prints one
JSON object: the files by what became of them, and the slowest.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hebrew_asr.audio.decode import Sound, quiet_decoders
from hebrew_asr.audio.source import AudioError, TruncatedAudio
from tests.support.sounds import CODED, EXACT

MEMORY_MIB = 512
"""More than the process has before it decodes."""
SLOWEST_S = 10.0
_TIMES_LONGER = 8
"""An Opus packet of 20 ms may say, by one bit, that it holds 120; nothing else may grow by more."""
_BLOCK_FRAMES = 1_017
"""libsndfile fills up the last block of ADPCM, of which a cut left a part: the file is called cut off all the same."""

KINDS = (
    *("wav 16 bit", "wav float", "rf64", "w64", "aiff", "au", "caf", "flac", "flac from a pipe", "flac in ogg"),
    *("flac in mkv", "alac", "mov", "avi", "wavpack", "wav IMA ADPCM", "wav GSM", "mp3", "mp3 vbr from a pipe", "mp2"),
    *("vorbis", "opus", "opus in webm", "m4a", "mp4 in fragments", "aac", "aac in mpegts", "aac in flv", "wma", "amr"),
)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four faults: bits flipped, bytes cut out or repeated, the end cut off, a length field of all ones."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        head = rng.random() < 0.5  # headers are short, and break most
        at = int(rng.integers(0, max(min(len(changed), 200) if head else len(changed), 1)))
        size = int(rng.integers(1, 2_000))
        fault = rng.integers(0, 6)
        if fault == 0 and changed:
            for _ in range(rng.integers(1, 9)):
                changed[min(at + int(rng.integers(0, 64)), len(changed) - 1)] ^= 1 << int(rng.integers(0, 8))
        elif fault == 1:
            del changed[at : at + size]
        elif fault == 2:
            changed[at:at] = changed[at : at + size]
        elif fault == 3:
            del changed[int(rng.integers(0, len(changed) + 1)) :]
        elif fault == 4:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
        else:
            changed[at : at + size] = rng.bytes(size)
    return bytes(changed)


def heard(content: bytes) -> tuple[str, int]:
    """What became of a file, and how many frames were heard of it, at its own rate."""
    sound = Sound(content, name="x", longest_s=3_600.0)
    samples = 0
    fate = "whole"
    try:
        for block in sound:
            samples += len(block)
    except TruncatedAudio:
        fate = "cut off"
    except AudioError:
        fate = "refused"
    return fate, round(samples / 16_000 * sound.rate_hz)


def main(seed: int, per_kind: int) -> int:
    makers: dict[str, Callable[[], bytes]] = EXACT | {name: make for name, (make, _) in CODED.items()}
    fates: Counter[str] = Counter()
    slowest = (0.0, "")
    long: list[str] = []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEMORY_MIB << 20),) * 2)
    for number, kind in enumerate(KINDS):
        content = makers[kind]()
        frames = heard(content)[1]
        for index in range(per_kind):
            name = f"{kind}:{seed}:{index}"
            print(name, file=sys.stderr, flush=True)  # the last line names what killed the process
            wrong = damaged(content, np.random.default_rng([seed, number, index]))
            start = time.monotonic()
            with quiet_decoders():
                fate, got = heard(wrong)
            slowest = max(slowest, (time.monotonic() - start, name))
            fates[fate] += 1
            if got > _TIMES_LONGER * max(frames * len(wrong) / len(content), len(wrong)) + _BLOCK_FRAMES:
                long.append(f"{name}: {got} frames of {len(wrong)} bytes")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"fates": fates, "slowest": slowest, "long": long, "peak_rss_mib": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
