"""How well word times can be told from the model itself. `transcribe` tells none, since the error is above 120 ms.

    python tests/benchmarks/word_times.py demo-run/final [--clips 40]

Sentences are spoken by eSpeak NG, which says when each word begins. Two ways to find that again, given the text:

cuts: the recording is cut off at every 40 ms, from its end and from its beginning, and the decoder is asked how likely
each word is in what is left. Words end, and begin, where that changes most, one after the other.
letters: the length of the recording, shared out by letters. It knows nothing of the sound, and does well only on speech
of an even tempo without pauses, as this is.

Prints the errors of the boundaries between words.
"""

from __future__ import annotations

import _ctypes
import argparse
import ctypes
import random
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import soxr
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, to_int16
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import Model
from hebrew_asr.data.collate import Example, pack
from hebrew_asr.demo.synthesis import full_sentences
from hebrew_asr.demo.synthesis.corpus import EVAL_VARIANTS, voices
from hebrew_asr.demo.synthesis.grammar import Sentence
from hebrew_asr.demo.synthesis.speech import Voice
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.text.prompt import PromptTokens, build_target, target_ids

CUT_S, LEAST_S = 0.04, 0.1
LEAST_LOG_LIKELIHOOD = -8.0
"""Below it a token is as good as not heard."""
WORD, PHONEME = 1, 7
"""espeak_EVENT_TYPE of speak_lib.h."""


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("type", "identifier", "text_position", "length", "position_ms", "sample")),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def spoken(sentence: Sentence, voice: Voice) -> tuple[np.ndarray, np.ndarray]:
    """Samples at 16 kHz, and the times in s at which the words begin, with the end of the last one."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    parts: list[np.ndarray] = []
    begins: list[int] = []
    phonemes: list[int] = []

    @_Callback
    def receive(samples, count, events):
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while events and events[at].type:
            if events[at].type in (WORD, PHONEME):
                (begins if events[at].type == WORD else phonemes).append(events[at].sample)
            at += 1
        return 0

    rate_hz = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000 | 1)
    library.espeak_SetSynthCallback(receive)
    library.espeak_SetVoiceByName(f"he+{voice.variant}".encode())
    library.espeak_SetParameter(1, voice.rate_wpm, 0)
    library.espeak_SetParameter(3, voice.pitch, 0)
    text = f"[[{sentence.phonemes}]]".encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, 0x101, None, None)
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)
    sound = soxr.resample(np.concatenate(parts).astype(np.float32), rate_hz, SAMPLE_RATE_HZ)
    return sound * np.float32(0.7 / np.abs(sound).max()), np.array([*begins, phonemes[-2]]) / rate_hz


class Aligner:
    """Word boundaries by the likelihood of each word in recordings that are cut off."""

    def __init__(self, folder: str):
        self._asr, self._tokenizer = load_model(Model(folder)).eval(), load_tokenizer(folder)
        self._prompt, self._packed, self._mel = PromptTokens.of(self._tokenizer), PackedASR(self._asr), LogMel()
        self._geometry = EncoderGeometry.of(self._asr.config.audio_config)

    def __call__(self, sound: np.ndarray, text: str) -> np.ndarray:
        """Times in s: (words + 1,)."""
        cuts = np.append(np.arange(0, len(sound), int(CUT_S * SAMPLE_RATE_HZ)), len(sound))
        least = int(LEAST_S * SAMPLE_RATE_HZ)
        before = [np.pad(sound[:cut], (0, max(least - cut, 0))) for cut in cuts]
        after = [np.pad(sound[cut:], (max(least - (len(sound) - cut), 0), 0)) for cut in cuts]
        heard, unheard = self._likelihoods(before, text), self._likelihoods(after, text)
        ends = np.flip(np.cumsum(np.flip(heard - _middle(heard), 0), 0), 0)
        begins = np.cumsum(unheard - _middle(unheard), 0)
        return cuts[_in_order(begins, ends)] / SAMPLE_RATE_HZ

    @torch.inference_mode()
    def _likelihoods(self, sounds: list[np.ndarray], text: str) -> np.ndarray:
        """Mean log-likelihood of the tokens of each word in each sound: (sounds, words)."""
        ids = target_ids(self._tokenizer, build_target(text))
        of_word = _words_of(
            self._tokenizer.convert_ids_to_tokens(ids), len(target_ids(self._tokenizer, build_target("")))
        )
        found = []
        for start in range(0, len(sounds), 32):
            examples = [Example(str(at), to_int16(sound), ids) for at, sound in enumerate(sounds[start : start + 32])]
            batch = pack(examples, self._prompt, self._geometry)
            logits = self._asr.lm_head(self._packed.hidden_states(batch, self._mel(batch))).float()
            found.append(torch.log_softmax(logits, -1).gather(1, batch.labels_L[:, None]).view(-1, len(ids)))
        tokens = torch.cat(found).clamp(min=LEAST_LOG_LIKELIHOOD).numpy()
        return np.stack([tokens[:, of_word == word].mean(1) for word in range(of_word.max() + 1)], 1)


def _words_of(tokens: list[str], prefix: int) -> np.ndarray:
    """The word that each token is of; -1 for those of the language and for the end."""
    words, word = [-1] * (prefix - 1), -1
    for token in tokens[prefix - 1 : -1]:
        word += token.startswith("Ġ") or word < 0
        words.append(word)
    return np.array([*words, -1])


def _middle(likelihoods: np.ndarray) -> np.ndarray:
    return (np.quantile(likelihoods, 0.05, axis=0) + np.quantile(likelihoods, 0.95, axis=0)) / 2


def _in_order(begins: np.ndarray, ends: np.ndarray) -> list[int]:
    """The cuts, none before the one before it, whose scores as ends and beginnings of words add up to the most."""
    best, back = begins[:, 0].copy(), []
    for word in range(ends.shape[1]):
        highest = np.maximum.accumulate(best)
        back.append(np.maximum.accumulate(np.where(best >= highest, np.arange(len(best)), 0)))
        best = highest + ends[:, word] + (begins[:, word + 1] if word + 1 < ends.shape[1] else 0)
    path = [int(best.argmax())]
    for came_from in reversed(back):
        path.append(int(came_from[path[-1]]))
    return path[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model that the demo trained")
    parser.add_argument("--clips", type=int, default=40)
    arguments = parser.parse_args()
    align, draw = Aligner(arguments.model), random.Random(0)
    errors: dict[str, list[np.ndarray]] = {"cuts": [], "letters": []}
    for sentence in draw.sample(full_sentences(), arguments.clips):
        sound, truth = spoken(sentence, draw.choice(voices(EVAL_VARIANTS)))
        letters = np.cumsum([0, *(len(word.plain) for word in sentence.words)])
        found = {"cuts": align(sound, sentence.text), "letters": letters / letters[-1] * len(sound) / SAMPLE_RATE_HZ}
        for name, times in found.items():
            errors[name].append((times - truth)[1:-1])
    print("| way | median error, ms | 90 %, ms | median of (found - true), ms | boundaries |\n|---|---|---|---|---|")
    for name, parts in errors.items():
        ms = 1000 * np.concatenate(parts)
        print(
            f"| {name} | {np.median(abs(ms)):.0f} | {np.quantile(abs(ms), 0.9):.0f} | {np.median(ms):.0f} | {len(ms)} |"
        )


if __name__ == "__main__":
    main()
