"""The synthetic corpus: language, sound, determinism, and that nothing of eval occurs in training."""

from __future__ import annotations

import _ctypes
import ctypes
import json
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.demo.synthesis import (
    Voice,
    corpus,
    full_sentences,
    lexicon,
    phrases,
    recorded,
    speak,
    synthesize_corpus,
)
from hebrew_asr.errors import UsageError

VOICE = Voice("f4", 215, 50)
MATRES = re.compile("[וי]")


def _without_points(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))


@pytest.mark.parametrize("word", lexicon(), ids=lambda word: word.phonemes)
def test_spellings_agree(word):
    """Plain and pointed spelling differ in vowel letters only, and every word has one stress mark."""
    assert MATRES.sub("", _without_points(word.pointed)) == MATRES.sub("", word.plain)
    assert not any(unicodedata.combining(char) for char in word.plain)
    assert word.phonemes.count("'") == 1


CONSONANTS = {
    **dict.fromkeys("אע", "?"),
    **{"ב": "bv", "ג": "g", "ד": "d", "ה": "h", "ז": "z", "ח": "X", "ט": "t", "כ": "kX", "ך": "X", "ל": "l"},
    **{"מ": "m", "ם": "m", "נ": "n", "ן": "n", "ס": "s", "פ": "pf", "ף": "f", "צ": "s", "ץ": "s", "ק": "k"},
    **{"ר": "R", "ש": "Ss", "ת": "t"},
}


@pytest.mark.parametrize("word", lexicon(), ids=lambda word: word.phonemes)
def test_consonants_are_spoken_in_the_order_written(word):
    """An independent reading of the letters: each consonant spoken is its letter's; silent letters drop out."""
    spoken = [char for char in word.phonemes.replace("ts", "s") if char in "?bvgdhzXtklmnspfRS"]
    for letter in MATRES.sub("", word.plain):
        if spoken and spoken[0] in CONSONANTS[letter]:
            spoken.pop(0)
        else:
            assert letter in "אהע", f"{letter} of {word.plain} is not spoken in {word.phonemes}"
    assert not [char for char in spoken if char != "v"]  # ו as a consonant was taken out with the vowel letters


@pytest.fixture
def library():
    """The engine itself, unloaded afterwards so that ``speak`` finds it fresh."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    assert library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000) > 0
    assert library.espeak_SetVoiceByName(b"he") == 0
    assert library.espeak_Synth(b"[[a]]", ctypes.c_size_t(6), 0, 0, 0, 0x101, None, None) == 0  # turns [[…]] on
    yield library
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)


def test_engine_understands_every_mnemonic(library):
    """What the engine would say, as IPA, is what we meant; a mnemonic it does not know would be dropped."""
    to_ipa = str.maketrans({"X": "χ", "R": "r", "S": "ʃ", "?": "ʔ", "g": "ɡ", "'": None})
    for word in lexicon():
        text = ctypes.c_char_p(f"[[{word.phonemes}]]".encode())
        spoken = library.espeak_TextToPhonemes(ctypes.pointer(text), 1, 0x02).decode()
        assert spoken.replace("ˈ", "").strip() == word.phonemes.translate(to_ipa), word.plain


def test_grammar_gives_thousands_of_agreeing_sentences():
    sentences = full_sentences()
    assert len({sentence.text for sentence in sentences}) == len(sentences) > 5000
    for sentence in sentences:
        parts = {word.part: word for word in sentence.words}
        assert len(parts) == len(sentence.words) and 3 <= len(parts) <= 5
        assert parts["subject"].agreement == parts["verb"].agreement
        assert parts["object"].kind in parts["verb"].takes
        if "adjective" in parts:
            assert parts["adjective"].agreement == parts["object"].agreement
    spoken = {word for sentence in [*sentences, *phrases()] for word in sentence.words}
    assert spoken == set(lexicon())
    assert "הילדה אוכלת תפוח גדול בגן" in {sentence.text for sentence in sentences}
    assert "הילדה אוכל תפוח" not in {sentence.text for sentence in sentences}


def test_speech_does_not_depend_on_what_was_spoken_before():
    first = speak("haj'eled", VOICE)
    other = speak("S'uv", Voice("m3", 190, 62))
    np.testing.assert_array_equal(speak("haj'eled", VOICE), first)
    assert first.dtype == np.float32 and first.ndim == 1
    assert abs(np.abs(first).max() - 0.7) < 1e-6
    assert 0.2 < len(first) / 16000 < 0.8 and len(other) != len(first)


def test_voices_sound_different_and_faster_is_shorter():
    slow, quick = (speak("hatalmid'im metsajR'im", Voice("f4", rate, 50)) for rate in (190, 240))
    assert len(quick) < 0.9 * len(slow)
    low, high = (speak("hatalmid'im", Voice("f4", 215, pitch)) for pitch in (30, 70))
    assert _fundamental_hz(high) > 1.3 * _fundamental_hz(low)


def _fundamental_hz(samples: np.ndarray) -> float:
    """Strongest autocorrelation of the loudest 60 ms, between 100 and 400 Hz."""
    start = int(np.convolve(samples**2, np.ones(960), "valid").argmax())
    frame = samples[start : start + 960]
    correlation = np.correlate(frame, frame, "full")[959:]
    return 16000 / (40 + int(correlation[40:160].argmax()))


@pytest.mark.parametrize("variant", corpus.TRAIN_VARIANTS + corpus.EVAL_VARIANTS)
def test_voices_of_the_corpus_are_reproducible(variant):
    """A ``breath`` line makes eSpeak NG 1.52 add noise that differs from process to process."""
    file = Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant
    assert not re.search(r"^breath\b", file.read_text(encoding="utf-8"), re.MULTILINE)


def test_clips_hold_no_silence_at_their_ends():
    for variant in corpus.TRAIN_VARIANTS + corpus.EVAL_VARIANTS:
        samples = np.abs(speak("t'ov", Voice(variant, 215, 50)))
        loud = np.flatnonzero(samples > 0.7 * 10 ** (-36 / 20))
        assert max(loud[0], len(samples) - loud[-1]) < 0.1 * 16000, variant


def test_some_recordings_begin_and_end_in_silence():
    """As the demo's model must have heard before it can tell silence from words; the same for the same seed."""
    speech = np.full(16_000, 0.5, np.float32)
    found = [recorded(speech, seed) for seed in range(1000)]
    spans = np.array([[np.flatnonzero(one)[0], len(one) - 1 - np.flatnonzero(one)[-1]] for one in found])
    assert all(
        np.array_equal(one[start : start + 16_000], speech) for one, (start, _) in zip(found, spans, strict=True)
    )
    assert spans.max() < 0.3 * 16_000 and (spans.max(0) > 0.28 * 16_000).all()
    assert (spans > 0).mean(0) == pytest.approx([0.2, 0.5], abs=0.05)
    np.testing.assert_array_equal(recorded(speech, 7), found[7])


def test_unknown_voice_and_empty_speech_are_refused():
    with pytest.raises(UsageError, match="no voice variant 'nobody'"):
        speak("t'ov", Voice("nobody", 200, 50))
    with pytest.raises(UsageError, match="spoke nothing"):
        speak("", VOICE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    synthesize_corpus(folder, train_clips=60, eval_clips=20, seed=1)
    return folder


def test_corpus_is_complete_and_leaks_nothing(folder):
    train, evaluation = read_manifest(folder / "train.jsonl"), read_manifest(folder / "eval.jsonl")
    assert (len(train), len(evaluation)) == (60, 20)
    assert any(not soundfile.read(clip.audio, dtype="int16")[0][-1000:].any() for clip in train), "no silent end"
    for clip in train + evaluation:
        info = soundfile.info(clip.audio)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.duration == pytest.approx(clip.duration_s) and 0.15 < clip.duration_s < 4.1
    assert not {clip.transcript for clip in train} & {clip.transcript for clip in evaluation}
    variants = [{clip.group.split("-")[0] for clip in clips} for clips in (train, evaluation)]
    assert not variants[0] & variants[1]
    assert all(len(clip.transcript.split()) >= 3 for clip in evaluation)
    assert {len(clip.transcript.split()) for clip in train} >= {1, 2, 4, 5}


def test_plan_keeps_eval_sentences_out_of_training():
    """With as many clips as this, a sentence left on both sides would certainly be drawn."""
    training, evaluation = corpus._plan(20_000, 2_000, 0)
    assert len(set(training)) == 20_000
    assert len({utterance.sentence.text for utterance in evaluation}) == 2_000
    assert not {u.sentence.text for u in training} & {u.sentence.text for u in evaluation}


def test_corpus_is_the_same_on_one_process_and_differs_with_the_seed(folder, tmp_path):
    synthesize_corpus(tmp_path / "a", train_clips=60, eval_clips=20, seed=1, processes=1)
    assert _content(tmp_path / "a") == _content(folder)
    assert corpus._plan(60, 20, seed=2) != corpus._plan(60, 20, seed=1) == corpus._plan(60, 20, seed=1)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_second_call_returns_at_once_and_an_interrupted_one_is_continued(tmp_path, monkeypatch):
    make = {"train_clips": 8, "eval_clips": 4, "seed": 3, "processes": 1}
    synthesize_corpus(tmp_path, **make)
    whole = _content(tmp_path)
    monkeypatch.setattr(corpus, "_speak_all", lambda *_: pytest.fail("spoke again"))
    synthesize_corpus(tmp_path, **make)
    monkeypatch.undo()
    clips = sorted((tmp_path / "clips").iterdir())
    clips[0].unlink()
    kept_ns = clips[1].stat().st_mtime_ns
    (tmp_path / "synthesis.json").write_text(json.dumps({"unfinished": {}}))  # as it is until the end
    synthesize_corpus(tmp_path, **make)
    assert _content(tmp_path) == whole
    assert clips[1].stat().st_mtime_ns == kept_ns


@pytest.mark.parametrize("mark", ["{", "[]"])
def test_what_another_has_made_is_left_as_it_is(tmp_path, mark):
    (tmp_path / "train.jsonl").write_text("mine")
    (tmp_path / "synthesis.json").write_text(mark)
    with pytest.raises(UsageError, match="of another making"):
        synthesize_corpus(tmp_path, train_clips=8, eval_clips=4, seed=3)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_too_few_sentences_is_a_usage_error_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="eval clips"):
        synthesize_corpus(tmp_path / "c", train_clips=10, eval_clips=10**6, seed=0)
    assert not (tmp_path / "c").exists()


def test_a_bar_shows_on_a_terminal_how_far_it_is(tmp_path):
    making = f"synthesize_corpus(Path({str(tmp_path)!r}) / 'a', train_clips=40, eval_clips=4, seed=1, processes=1)"
    program = f"from pathlib import Path; from hebrew_asr.demo.synthesis import synthesize_corpus; {making}"
    typed = f"TERM=xterm {sys.executable} -c {shlex.quote(program)}"
    shown = subprocess.run(["script", "-qec", typed, "/dev/null"], capture_output=True, text=True, check=True).stdout
    assert "speaking" in shown and "100%" in shown
