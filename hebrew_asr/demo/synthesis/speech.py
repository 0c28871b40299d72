"""Speech from phonemes through eSpeak NG, whose library and voices come inside the ``espeakng-loader`` wheel.

The engine is called in process: ``espeak_Synth`` in synchronous mode with its 16-bit samples handed to a callback
(speak_lib.h of eSpeak NG 1.52).
"""

from __future__ import annotations

import _ctypes
import ctypes
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
import soxr

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.errors import EnvironmentProblem, UsageError

# Constants of speak_lib.h
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_UTF8, _PHONEMES = 0x0001, 0x0100
_OK = 0

_PEAK = 0.7
"""Every clip is scaled to this peak: some voices come out at a fifth of full scale, some clip."""

_SHARE_BEFORE, _SHARE_AFTER, _MOST_S = 0.2, 0.5, 0.3
"""A fifth of the recordings begins with silence, half of them end with some, up to 0.3 s. The small model of the demo
learns words by their place at first: with more silence at the beginning, or noise in it, five epochs do not suffice."""

_lock = threading.Lock()
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Voice:
    """One pseudo-speaker: a timbre of eSpeak NG with its own tempo and pitch."""

    variant: str
    """A file name in ``espeak-ng-data/voices/!v``. Files with a ``breath`` line sound different in every process."""
    rate_wpm: int
    """Words a minute, 80-450."""
    pitch: int
    """0-100; 50 is the variant's own."""

    @property
    def name(self) -> str:
        """Such as ``f2-r200-p45``; the speaker in a manifest."""
        return f"{self.variant}-r{self.rate_wpm}-p{self.pitch}"


def speak(phonemes: str, voice: Voice) -> np.ndarray:
    """Speak mnemonics of the Hebrew voice.

    The same call gives the same samples in any process and any order, as long as nothing else in the process holds
    the library open (see :func:`_synthesize`).

    Returns:
        float32 of shape (samples,) at 16 kHz, peak 0.7, with next to no silence at the ends.

    Raises:
        UsageError: the variant does not exist, or nothing audible came out.
        EnvironmentProblem: the engine does not start.
    """
    if not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / voice.variant).is_file():
        raise UsageError(f"eSpeak NG has no voice variant {voice.variant!r}")  # it would use the plain voice instead
    with _lock:
        samples, rate_hz = _synthesize(phonemes, voice)
    if not np.abs(samples).any():
        raise UsageError(f"voice {voice.name} spoke nothing for [[{phonemes}]]: are these eSpeak NG mnemonics?")
    resampled = soxr.resample(samples.astype(np.float32), rate_hz, SAMPLE_RATE_HZ)
    return resampled * np.float32(_PEAK / np.abs(resampled).max())


def recorded(speech: np.ndarray, seed: int) -> np.ndarray:
    """The same speech as a recording of it, with silence of random length before some and after some.

    A model that never heard a moment of silence takes it for words.

    Args:
        speech: float32 (samples,), mono 16 kHz.
        seed: decides the lengths.
    """
    draw = random.Random(seed)
    before, after = (
        int(draw.uniform(0, _MOST_S) * SAMPLE_RATE_HZ) if draw.random() < share else 0
        for share in (_SHARE_BEFORE, _SHARE_AFTER)
    )
    return np.pad(speech, (before, after))


def _synthesize(phonemes: str, voice: Voice) -> tuple[np.ndarray, int]:
    """Load the library afresh, speak, unload it.

    Its oscillators run on from clip to clip in static variables that neither ``espeak_Terminate`` nor
    ``espeak_ng_SetRandSeed`` resets; only a fresh image (1 ms) makes a clip independent of those before it.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pieces: list[np.ndarray] = []

    @_SynthCallback
    def receive(samples, count, _events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    try:
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT)
        if rate_hz <= 0:
            raise EnvironmentProblem(
                f"eSpeak NG did not start with the voices in {espeakng_loader.get_data_path()}. "
                "Reinstall espeakng-loader, in a path of less than 150 characters"
            )
        library.espeak_SetSynthCallback(receive)
        if library.espeak_SetVoiceByName(f"he+{voice.variant}".encode()) != _OK:
            raise EnvironmentProblem("eSpeak NG has no Hebrew voice. Reinstall espeakng-loader")
        library.espeak_SetParameter(_RATE, voice.rate_wpm, 0)
        library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        text = f"[[{phonemes}]]".encode()
        status = library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8 | _PHONEMES, None, None)
        if status != _OK:
            raise EnvironmentProblem(f"eSpeak NG failed with status {status} on [[{phonemes}]]")
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16), rate_hz
