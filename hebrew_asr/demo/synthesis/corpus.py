"""A synthetic corpus on disk: two manifests and 16 kHz clips; no eval voice and no eval sentence occurs in training."""

from __future__ import annotations

import hashlib
import io
import random
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import soundfile

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, to_int16
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.demo.synthesis.grammar import Sentence, full_sentences, lexicon, phrases
from hebrew_asr.demo.synthesis.speech import Voice, recorded, speak
from hebrew_asr.errors import UsageError
from hebrew_asr.files import values_if_readable, write_atomically, write_json
from hebrew_asr.pools import Pool
from hebrew_asr.streams import tracked
from hebrew_asr.text.prompt import build_target

# No breathy variants (f2, f3, f5, Alicia): their noise differs from process to process.
TRAIN_VARIANTS = (
    *("f1", "f4", "Andrea", "Annie", "anika", "aunty", "grandma", "linda", "steph"),
    *("m1", "m2", "m3", "m4", "m7", "m8", "Alex", "Andy", "Denis", "Gene", "Gene2", "Hugo", "Lee", "Mario"),
    *("Michael", "adam", "benjamin", "ed", "edward", "grandpa", "ian", "iven", "john", "klatt", "klatt3"),
    *("michel", "norbert", "pablo", "paul", "quincy", "rob", "robert", "travis"),
)
EVAL_VARIANTS = ("belinda", "shelby", "m5", "m6", "boris", "Mike")
_RATES_WPM = (190, 215, 240)
_PITCHES = (38, 50, 62)

_PHRASE_SHARE = 0.3
"""Share of training clips that are single words and phrases; the rest are sentences of three to five words."""
_DONE = "synthesis.json"
_SOUND = 2
"""Version of what is made of a voice's speech; another number makes other clips."""


class _Utterance(NamedTuple):
    sentence: Sentence
    voice: Voice

    @property
    def id(self) -> str:
        """Hash of what is spoken and by whom, so a clip found on disk is the clip that would be made."""
        return f"{self.voice.name}-{self._digest[:12]}"

    @property
    def seed(self) -> int:
        """Of the silence around it."""
        return int(self._digest[12:28], 16)

    @property
    def _digest(self) -> str:
        spoken = f"{self.voice.name} {self.sentence.phonemes} {version('espeakng-loader')} {_SOUND}"
        return hashlib.sha256(spoken.encode()).hexdigest()


def voices(variants: tuple[str, ...]) -> list[Voice]:
    """Every variant at three tempi and three pitches."""
    return [Voice(variant, rate, pitch) for variant in variants for rate in _RATES_WPM for pitch in _PITCHES]


def synthesize_corpus(
    folder: Path,
    *,
    train_clips: int,
    eval_clips: int,
    seed: int,
    processes: int = 2,
) -> None:
    """Write a corpus, the same for the same arguments whatever ``processes`` is.

    Every eval clip is another full sentence. Its text and its timbre occur in no training clip.
    ``synthesis.json`` says at the start whose folder it is, and at the end what it holds: a second call with the same
    arguments returns at once, and one after an interruption keeps the clips it finds. Clips of other arguments stay in
    ``clips/``, named by no manifest.

    Args:
        folder: where ``train.jsonl``, ``eval.jsonl``, ``clips/`` and ``synthesis.json`` go.
        train_clips: clips of training.
        eval_clips: clips of evaluation.
        seed: of the choice of sentences and voices.
        processes: how many speak at a time.

    Raises:
        UsageError: the grammar holds too few sentences, or the folder is of another making.
        EnvironmentProblem: the speech engine does not start.
    """
    folder = Path(folder)
    settings: dict[str, object] = {
        "train_clips": train_clips,
        "eval_clips": eval_clips,
        "seed": seed,
        "content": _fingerprint(),
    }
    known = values_if_readable(folder / _DONE)
    if known == settings:
        return
    if not known and folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} holds files of another making (no readable {_DONE} in it): move it, or start elsewhere"
        )
    training, evaluation = _plan(train_clips, eval_clips, seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    write_json(folder / _DONE, {"unfinished": settings})
    clips = _speak_all(folder, [*training, *evaluation], processes)
    write_manifest(folder / "train.jsonl", clips[:train_clips])
    write_manifest(folder / "eval.jsonl", clips[train_clips:])
    write_json(folder / _DONE, settings)


def _fingerprint() -> str:
    """Changes with the words, the voices and the engine."""
    voiced = lexicon(), voices(TRAIN_VARIANTS + EVAL_VARIANTS), version("espeakng-loader")
    content = repr((*voiced, _PHRASE_SHARE, _SOUND))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plan(train_clips: int, eval_clips: int, seed: int) -> tuple[list[_Utterance], list[_Utterance]]:
    """Choose who says what; the two lists share neither a text nor a variant."""
    choose = random.Random(seed)
    sentences = full_sentences()
    if train_clips < 1 or not 1 <= eval_clips <= len(sentences) // 10 or train_clips > 10 * len(sentences):
        raise UsageError(
            f"cannot make {train_clips} training and {eval_clips} eval clips: the grammar gives "
            f"1-{10 * len(sentences)} and 1-{len(sentences) // 10}"
        )
    choose.shuffle(sentences)
    held_out, rest = sentences[:eval_clips], sentences[eval_clips:]
    eval_voices, train_voices, short = voices(EVAL_VARIANTS), voices(TRAIN_VARIANTS), phrases()
    evaluation = [_Utterance(sentence, choose.choice(eval_voices)) for sentence in held_out]
    training: dict[_Utterance, None] = {}
    while len(training) < train_clips:
        sentence = choose.choice(short if choose.random() < _PHRASE_SHARE else rest)
        training[_Utterance(sentence, choose.choice(train_voices))] = None
    texts = {utterance.sentence.text for utterance in training}
    assert not any(utterance.sentence.text in texts for utterance in evaluation)
    assert not set(EVAL_VARIANTS) & set(TRAIN_VARIANTS)
    return list(training), evaluation


def _speak_all(folder: Path, utterances: list[_Utterance], processes: int) -> list[Clip]:
    """Speak in worker processes, since the engine is global to its process; a bar shows progress on a terminal."""
    with Pool(processes) as pool:
        spoken = pool.map(partial(_speak_one, folder), utterances, chunksize=16)
        return list(tracked(spoken, "speaking", len(utterances), transient=True))


def _speak_one(folder: Path, utterance: _Utterance) -> Clip:
    path = folder / "clips" / f"{utterance.id}.wav"
    if not path.is_file():
        wav = io.BytesIO()
        samples = recorded(speak(utterance.sentence.phonemes, utterance.voice), utterance.seed)
        soundfile.write(wav, to_int16(samples), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
        write_atomically(path, wav.getvalue())
    return Clip(
        audio=str(path.absolute()),
        text=build_target(utterance.sentence.text),
        id=utterance.id,
        duration_s=soundfile.info(path).duration,
        group=utterance.voice.name,
    )
