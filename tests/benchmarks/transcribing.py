"""How well and how fast a trained model transcribes; prints one table for each part that is named, or for all.

    python tests/benchmarks/transcribing.py demo-run demo-data/eval.jsonl [joined quiet hour speed serving]

Every model will do that was trained on the clips of the manifest's kind; the figures of RESULTS.md are of the demo's.

joined: ten clips with the same silence between all of them, as one recording; the words are those of the ten alone.
quiet: ten minutes of silence, noise, hum and tones. hour: memory above the model. speed: seconds of sound per second,
beside transformers' ``generate``. serving: ``hebrew-asr serve`` with 50 requests at once, and one by one.

On a GPU with the weights of a full-size model drawn at random, which never end a text: ``speed`` alone, with
``--device cuda --random FOLDER``, where FOLDER holds config.json and the tokenizer. Both then write as many tokens as a
clip may have, and `transcribe` does not try again what never ends. Clips are joined to some 5 s.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode, decode_blocks
from hebrew_asr.config.recipe import Model
from hebrew_asr.data.manifest import Clip, read_manifest
from hebrew_asr.inference import long_form
from hebrew_asr.inference.load import load_transcriber, model_folder
from hebrew_asr.inference.long_form import Options, transcribe_all
from hebrew_asr.inference.pieces import Cutting, cut
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.launching.processes import free_port
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.text.prompt import CHAT_TEMPLATE
from hebrew_asr.text.wer import ErrorCounts, per_clip_errors

SILENCES_S = (0.2, 0.5, 1.0, 5.0, 20.0)
BLOCK_S = 10
LANGUAGE_GIVEN = [
    {"role": "user", "content": [{"type": "audio", "audio": ""}]},
    {"role": "assistant", "content": [{"type": "text", "text": "language Hebrew<asr_text>"}]},
]
"""What `generate` is asked; its helper for that, `apply_transcription_request`, refuses languages it does not know."""
RANDOM: list[Any] = []
"""Model and tokenizer, where the weights are drawn."""


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)


def text_of(transcriber: Transcriber, blocks: Iterator[np.ndarray] | list[np.ndarray]) -> str:
    ((_, found),) = transcribe_all(transcriber, [(0, blocks)])
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


def hour(transcriber: Transcriber, clips: list[Clip]) -> None:
    sounds = [decode(clip.audio) for clip in clips[:20]]
    transcriber(sounds[:16])
    base = resident_mib()
    print(f"memory with the model, after a batch: {base:.0f} MiB\n")
    print("| recording | words | x real time | at most MiB more |\n|---|---|---|---|")
    block = np.concatenate([part for sound in sounds for part in (sound, silence(1.5))])
    with tempfile.TemporaryDirectory() as folder:
        for kind, hours in (("wav", 1), ("mp3", 1), ("wav", 3)):
            file = Path(folder, f"long.{kind}")
            with soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, 1) as out:
                for _ in range(int(hours * 3600 * SAMPLE_RATE_HZ / len(block))):
                    out.write(block)
            peak, done, started = [0.0], threading.Event(), time.monotonic()
            watch = threading.Thread(target=_watch_memory, args=(peak, done))
            watch.start()
            words = len(text_of(transcriber, decode_blocks(file)).split())
            rate = hours * 3600 / (time.monotonic() - started)
            done.set()
            watch.join()
            print(f"| {hours} h, {kind} | {words:,} | {rate:.0f} | {max(peak[0] - base, 0):.0f} |", flush=True)


def _watch_memory(peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], resident_mib())


def speed(transcriber: Transcriber, clips: list[Clip]) -> None:
    """Both are given the language, so that they write the same text, and as many tokens at the most."""
    processor, model = theirs()
    sounds = [decode(clip.audio) for clip in clips]
    if RANDOM:
        long_form.suspicion = lambda *_args, **_options: None
        sounds = [np.concatenate(sounds[start : start + 3]) for start in range(0, len(sounds), 3)]
    sounds.sort(key=len)
    few = sounds[:: 8 if RANDOM else 1]

    def transcribed(some: list[np.ndarray]) -> None:
        recordings = [(index, [sound]) for index, sound in enumerate(some)]
        assert len(list(transcribe_all(transcriber, recordings))) == len(some)

    def searched(some: list[np.ndarray]) -> None:
        for sound in some:
            list(cut([sound], transcriber.cutting))

    def decoded(some: list[np.ndarray], together: int) -> None:
        for start in range(0, len(some), together):
            transcriber(some[start : start + together])

    def generated(some: list[np.ndarray], together: int) -> None:
        for start in range(0, len(some), together):
            part = some[start : start + together]
            prompts = processor.apply_chat_template([LANGUAGE_GIVEN] * len(part), continue_final_message=True)
            inputs = processor(
                text=prompts, audio=part, return_tensors="pt", padding=True, sampling_rate=SAMPLE_RATE_HZ
            )
            most = Decoding().cap(max(map(len, part)))
            tokens = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=most, do_sample=False)
            processor.decode(tokens[:, inputs["input_ids"].shape[1] :], return_format="transcription_only")

    usual, singly, batched = Options().batch_pieces, "clip by clip", "16 at a time, sorted by length"
    ways = {
        "`transcribe`": (sounds, transcribed),
        "its search for speech alone, on one core": (sounds, searched),
        f"its decoding alone, {usual} at a time": (sounds, lambda some: decoded(some, usual)),
        "its decoding alone, 16 at a time": (sounds, lambda some: decoded(some, 16)),
        f"transformers' `generate`, {singly}": (few, lambda some: generated(some, 1)),
        f"transformers' `generate`, {batched}": (sounds, lambda some: generated(some, 16)),
    }
    cores, rates = torch.get_num_threads(), rates_of(ways)
    one, many = (rates[f"transformers' `generate`, {way}"] for way in (singly, batched))
    lasts_s = sum(map(len, sounds)) / SAMPLE_RATE_HZ
    print(f"{len(sounds)} clips, {lasts_s:.0f} s, {cores} or 1 threads, {model.device}, {model.dtype}\n")
    print("| | x real time | by transformers' clip by clip | by its batches |\n|---|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {rate / one:.1f} | {rate / many:.1f} |", flush=True)


def rates_of(ways: dict[str, tuple[list[np.ndarray], Callable[[list[np.ndarray]], None]]]) -> dict[str, float]:
    """Of each way, how many seconds of its recordings it handles in one."""
    for some, run in ways.values():  # what a process does once, such as loading kernels, is nobody's speed
        run(some[:2])
    cores = torch.get_num_threads()
    rates = dict.fromkeys(ways, 0.0)
    # In turns, and the fastest of each counts: other load can only slow one down. A small model is faster with one.
    # On a GPU once: clips that never end take minutes.
    for threads in (cores,) if RANDOM else (cores, 1, cores, 1):
        torch.set_num_threads(threads)
        for name, (some, run) in ways.items():
            started = time.monotonic()
            run(some)
            rate = sum(map(len, some)) / SAMPLE_RATE_HZ / (time.monotonic() - started)
            rates[name] = max(rates[name], rate)
            print(f"{name}: {rate:.1f}", file=sys.stderr, flush=True)
    torch.set_num_threads(cores)
    return rates


def theirs() -> tuple[Any, Any]:
    """transformers' processor and model, as people load them; with random weights, ours."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

    if RANDOM:
        asr, tokenizer = RANDOM
        return Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE), asr
    folder = model_folder(ARGUMENTS.model)
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto").to(ARGUMENTS.device)
    return AutoProcessor.from_pretrained(folder), model


def ours() -> Transcriber:
    if not ARGUMENTS.random:
        return load_transcriber(ARGUMENTS.model, "he", device=ARGUMENTS.device)
    if not RANDOM:
        asr = load_model(Model(ARGUMENTS.random, random_weights=True), dtype=torch.bfloat16)
        RANDOM.extend((asr.to(ARGUMENTS.device).eval(), load_tokenizer(ARGUMENTS.random)))
    return Transcriber(*RANDOM, cutting=Cutting(whole_s=30.0))


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", help="folder of config.json and tokenizer, whose weights are drawn")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all unless given")
    ARGUMENTS = parser.parse_intermixed_args()
    held_out = read_manifest(ARGUMENTS.manifest, allow_outside=True)
    for part in ARGUMENTS.parts or PARTS:
        print(f"\n{part}", flush=True)
        PARTS[part](ours(), held_out)
