"""How well and how fast a trained model transcribes; prints one table for each part that is named, or for all.

    python tests/benchmarks/transcribing.py demo-run demo-data/eval.jsonl [joined quiet hour speed serving]

Every model will do that was trained on the clips of the manifest's kind; the figures of RESULTS.md are of the demo's.

joined: ten clips with the same silence between all of them, as one recording; the words are those of the ten alone.
quiet: ten minutes of silence, noise, hum and tones. hour: memory above the model. speed: audio seconds per second,
beside transformers' ``generate`` on one clip at a time. serving: ``hebrew-asr serve`` with 50 requests at once, and one
by one.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode
from hebrew_asr.data.manifest import Clip, read_manifest
from hebrew_asr.inference.load import load_transcriber, model_folder
from hebrew_asr.inference.long_form import Options, transcribe_all
from hebrew_asr.inference.transcriber import Transcriber
from hebrew_asr.launching.processes import free_port
from hebrew_asr.text.wer import ErrorCounts, per_clip_errors

SILENCES_S = (0.2, 0.5, 1.0, 5.0, 20.0)
BLOCK_S = 10


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)


def text_of(transcriber: Transcriber, blocks: Iterator[np.ndarray] | list[np.ndarray]) -> str:
    ((_, found),) = transcribe_all(transcriber, [(0, blocks)], Options(batch_pieces=16))
    assert not isinstance(found, Exception)
    return found.text


def joined(transcriber: Transcriber, clips: list[Clip], draws: int = 5) -> None:
    print("| silence between, s | WER joined | WER of the same clips alone | recordings |\n|---|---|---|---|")
    for silence_s in SILENCES_S:
        together, alone, draw = ErrorCounts(), ErrorCounts(), random.Random(0)
        for _ in range(draws):
            ten = draw.sample(clips, 10)
            sounds, texts = [decode(clip.audio) for clip in ten], [clip.transcript for clip in ten]
            parts = [part for sound in sounds for part in (sound, silence(silence_s))][:-1]
            heard = text_of(transcriber, [np.concatenate(parts)])
            together += sum(per_clip_errors([" ".join(texts)], [heard], mode="strict"), ErrorCounts())
            alone += sum(per_clip_errors(texts, transcriber(sounds), mode="strict"), ErrorCounts())
        print(f"| {silence_s} | {together.wer:.1%} | {alone.wer:.1%} | {draws} |", flush=True)


def quiet(transcriber: Transcriber, _clips: list[Clip], minutes: int = 10) -> None:
    draw, t = np.random.default_rng(0), np.arange(BLOCK_S * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    sounds = {
        "silence": lambda: 0 * t,
        "white noise": lambda: draw.normal(0, 0.1, len(t)),
        "hum": lambda: 0.3 * np.sin(2 * np.pi * 50 * t) + 0.1 * np.sin(2 * np.pi * 150 * t),
        "tones": lambda: 0.3 * np.sin(2 * np.pi * 110 * 2 ** (np.floor(t) * 7 % 24 / 12) * t),
    }
    print(f"| {minutes} min of | words |\n|---|---|")
    for name, make in sounds.items():
        blocks = (make().astype(np.float32) for _ in range(minutes * 60 // BLOCK_S))
        print(f"| {name} | {len(text_of(transcriber, blocks).split())} |", flush=True)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def hour(transcriber: Transcriber, clips: list[Clip], hours: float = 1.0) -> None:
    sounds = [decode(clip.audio) for clip in clips[:20]]
    transcriber(sounds[:16])
    base, peak, done = resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], resident_mib())

    threading.Thread(target=watch).start()
    try:
        block = np.concatenate([part for sound in sounds for part in (sound, silence(1.5))])
        times, started = int(hours * 3600 * SAMPLE_RATE_HZ / len(block)), time.monotonic()
        words = len(text_of(transcriber, (block.copy() for _ in range(times))).split())
    finally:
        done.set()
    lasts_s = times * len(block) / SAMPLE_RATE_HZ
    rate = lasts_s / (time.monotonic() - started)
    print(
        f"{lasts_s:.0f} s of recording, {words:,} words: {rate:.0f} x real time; memory {base:.0f} MiB "
        f"with the model after a batch, at most {max(peak[0] - base, 0):.0f} MiB more",
        flush=True,
    )


def speed(transcriber: Transcriber, clips: list[Clip]) -> None:
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    folder = model_folder(ARGUMENTS.model)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32)
    sounds = [decode(clip.audio) for clip in clips]
    lasts_s = sum(map(len, sounds)) / SAMPLE_RATE_HZ

    def ours() -> None:
        recordings = [(index, [sound]) for index, sound in enumerate(sounds)]
        assert len(list(transcribe_all(transcriber, recordings, Options(batch_pieces=16)))) == len(sounds)

    def theirs() -> None:
        for sound in sounds:
            inputs = processor.apply_transcription_request(audio=[sound])
            tokens = model.generate(**inputs)
            processor.decode(tokens[:, inputs["input_ids"].shape[1] :], return_format="transcription_only")

    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(2):  # in turns, and the faster of each counts: other load can only slow one down
        for name, run in (("ours", ours), ("theirs", theirs)):
            started = time.monotonic()
            run()
            took[name].append(time.monotonic() - started)
    rates = {name: lasts_s / min(found) for name, found in took.items()}
    print(
        f"{len(sounds)} clips, {lasts_s:.0f} s, {torch.get_num_threads()} threads: transcribe {rates['ours']:.1f} x "
        f"real time, transformers' generate clip by clip {rates['theirs']:.1f} x: "
        f"{rates['ours'] / rates['theirs']:.1f} times as fast",
        flush=True,
    )


def serving(_transcriber: Transcriber, clips: list[Clip], requests: int = 50) -> None:
    port = free_port()
    command = [sys.executable, "-m", "hebrew_asr.cli", "serve", "--model", ARGUMENTS.model, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = f"http://127.0.0.1:{port}"

    def ask(clip: Clip) -> float:
        edge, sound = "a-border-of-parts", Path(clip.audio).read_bytes()
        head = f'--{edge}\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--{edge}\r\nContent-Disposition: '
        head += 'form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        body = head.encode() + sound + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        started = time.monotonic()
        with urllib.request.urlopen(urllib.request.Request(f"{root}/v1/audio/transcriptions", body, kind)) as answer:
            assert answer.status == 200 and answer.read()
        return time.monotonic() - started

    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{root}/health").close()
                break
            except OSError:
                time.sleep(0.5)
        asked = (clips * requests)[:requests]
        ask(asked[0])
        print("| requests at once | requests/s | p95, s |\n|---|---|---|")
        for at_once in (1, requests):
            started = time.monotonic()
            with ThreadPoolExecutor(at_once) as pool:
                took = sorted(pool.map(ask, asked))
            rate = requests / (time.monotonic() - started)
            print(f"| {at_once} | {rate:.1f} | {took[int(0.95 * requests)]:.2f} |", flush=True)
    finally:
        server.terminate()
        server.wait()


PARTS = {"joined": joined, "quiet": quiet, "hour": hour, "speed": speed, "serving": serving}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a run or of a model")
    parser.add_argument("manifest", help="clips that it did not train on")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all unless given")
    ARGUMENTS = parser.parse_args()
    held_out = read_manifest(ARGUMENTS.manifest, allow_outside=True)
    for part in ARGUMENTS.parts or PARTS:
        print(f"\n{part}", flush=True)
        PARTS[part](load_transcriber(ARGUMENTS.model, "he", device="cpu"), held_out)
