"""What surrounds the model when people transcribe: inputs, pieces, guards, languages, files and subtitles."""

from __future__ import annotations

import io
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from silero_vad import load_silero_vad

from hebrew_asr.cli import main
from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.errors import CheckpointError, DataError, UsageError
from hebrew_asr.inference import long_form, speech
from hebrew_asr.inference.export import write_cutting
from hebrew_asr.inference.formats import formatted
from hebrew_asr.inference.guards import suspicion
from hebrew_asr.inference.inputs import Input, blocks_of_any, find_inputs, output_paths
from hebrew_asr.inference.load import cutting_of, model_folder
from hebrew_asr.inference.long_form import Options, Segment, Transcript, transcribe_all
from hebrew_asr.inference.pieces import Cutting, Piece, cut
from hebrew_asr.inference.subtitles import LINE_CHARACTERS, cues
from hebrew_asr.inference.transcriber import Heard
from hebrew_asr.languages import language_code, language_name
from hebrew_asr.text.repetition import find_loop, without_loops

pytestmark = pytest.mark.integration

RATE = 16_000


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def said() -> list[np.ndarray]:
    """Eight spoken sentences."""
    spoken = [speak(s.phonemes, Voice("m3", 180, 45)) for s in full_sentences()[:4000:500]]
    heard = [np.flatnonzero(np.abs(clip) > 1e-3) for clip in spoken]
    return [clip[at[0] : at[-1]] for at, clip in zip(heard, spoken, strict=True)]


SHORT = Cutting(30.0, 1.4, 4.2)


def pieces_of(samples: np.ndarray, cutting: Cutting = SHORT) -> list[Piece]:
    *pieces, lasts_s = cut(np.array_split(samples, 7), cutting)
    assert lasts_s == len(samples) / RATE
    return pieces


@pytest.mark.parametrize("name", ["he", "HEB", "iw", "Hebrew", "hebrew", "עברית", "he-IL", "he_IL.UTF-8", " he "])
def test_hebrew_has_many_names(name):
    assert language_name(name) == "Hebrew"


@pytest.mark.parametrize(
    ("name", "hint"), [("Hebrow", "Hebrew"), ("Klingon", "known: Arabic"), ("", "known"), ("Rusian", "Russian")]
)
def test_unknown_language_is_refused_with_a_suggestion(name, hint):
    with pytest.raises(UsageError, match=hint):
        language_name(name)


def test_languages_are_those_of_transformers_and_hebrew():
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    for code, name in LANGUAGE_CODE_TO_NAME.items():
        assert language_name(code) == language_name(name) == name
        assert language_code(name) == code
    assert language_name("auto") is None


def test_each_sentence_is_a_piece_with_all_its_sound(said):
    """Gaps of 0.25 to 6 s; loud and quiet recordings."""
    gaps = [0.4, 6.0, 0.25, 1.0, 2.0, 0.8, 3.0, 1.5]
    recording = np.concatenate([part for gap, clip in zip(gaps, said, strict=True) for part in (silence(gap), clip)])
    for level in (1.0, 0.01):
        pieces = pieces_of(recording * np.float32(level))
        assert len(pieces) == len(said)
        at = 0.0
        for gap, clip, piece in zip(gaps, said, pieces, strict=True):
            at += gap
            quiet = piece.samples[: int(0.08 * RATE)], piece.samples[-int(0.05 * RATE) :]
            assert not quiet[0].any(), "the model knows clips that begin quietly"
            assert not quiet[1].any() or clip is said[-1], "the model knows clips that end quietly"
            assert len(clip) <= len(piece.samples) + 0.02 * RATE and len(piece.samples) <= len(clip) + 0.22 * RATE
            assert piece.start_s == pytest.approx(at, abs=0.7)
            assert piece.end_s == pytest.approx(at + len(clip) / RATE, abs=0.15)
            at += len(clip) / RATE


def test_short_pauses_end_pieces_for_a_model_of_short_clips(said):
    recording = np.concatenate([part for clip in said for part in (clip, silence(0.2))])
    assert len(pieces_of(recording)) == len(said)
    assert len(pieces_of(recording, Cutting(30.0, 5.0, 4.2))) < len(said)


def test_a_recording_may_end_anywhere_in_a_pause(said):
    """The detector fills its last frame of 512 samples up."""
    for more in range(1600, 4800, 100):
        recording = np.concatenate([silence(6), said[0], silence(0.2), said[1], np.zeros(more, np.float32)])
        assert len(pieces_of(recording)) == 2, more


def test_speech_without_a_pause_is_cut_and_nothing_lost_or_doubled(said):
    recording = np.concatenate(said * 4)
    pieces = pieces_of(recording, Cutting(5.0, 2.5, 5.0))
    assert all(len(piece.samples) <= 5 * RATE for piece in pieces)
    joined = np.concatenate([piece.samples for piece in pieces])
    heard = np.count_nonzero(np.abs(joined) > 1e-3), np.count_nonzero(np.abs(recording) > 1e-3)
    assert heard[0] == pytest.approx(heard[1], rel=0.002)


def test_speech_is_found_alike_in_blocks_of_any_length(said, monkeypatch):
    """As silero-vad finds it in a whole recording, where levels are left as they are."""
    monkeypatch.setattr(speech, "_MAX_GAIN", 1.0)
    monkeypatch.setattr(speech, "_SILENT_SHARE", 0.0)
    recording = np.concatenate([part for clip in said for part in (clip, silence(0.7))])
    whole = load_silero_vad(sequence=True).audio_forward(recording)
    assert len(whole) > speech._FRAMES_AT_ONCE
    for edges in ([], [1, 512, 1025, *range(8025, len(recording), 7000)]):
        detector = speech.SpeechDetector()
        found = [detector(block) for block in np.split(recording, edges)]
        np.testing.assert_allclose(np.concatenate([*found, detector.close()]), whole, atol=1e-4)


@pytest.mark.parametrize("offset", [0.3, -0.02])
def test_quiet_speech_is_found_beside_zero(said, offset):
    """Cheap recorders add a constant, which was taken for the loudest sound of all."""
    recording = np.concatenate([part for clip in said[:4] for part in (silence(2), clip)])
    quiet = recording * np.float32(0.003 / np.abs(recording).max())
    times = [[(piece.start_s, piece.end_s) for piece in pieces_of(sound)] for sound in (quiet, quiet + offset)]
    assert len(times[0]) == 4
    np.testing.assert_allclose(times[1], times[0], atol=0.1)


def test_what_is_no_speech_gives_no_piece():
    rng, t = np.random.default_rng(0), np.arange(20 * RATE) / RATE
    notes = 220 * 2 ** ((np.floor(t * 4) * 5 % 12) / 12)
    sounds = {
        "silence": silence(20),
        "noise": rng.normal(0, 0.2, len(t)),
        "quiet noise": rng.normal(0, 1e-4, len(t)),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * t) + 0.1 * np.sin(2 * np.pi * 150 * t),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * t),
        "beeps": 0.5 * np.sin(2 * np.pi * 1000 * t) * (t % 1 < 0.3),
        "music": 0.2 * np.sign(np.sin(2 * np.pi * np.cumsum(notes) / RATE)) * np.exp(-(t % 0.25) * 8),
        "clicks": (np.arange(len(t)) % RATE < 20) * 0.9,
        "direct current": np.full(len(t), 0.4),
    }
    assert {name: len(pieces_of(sound.astype(np.float32))) for name, sound in sounds.items()} == dict.fromkeys(
        sounds, 0
    )


def test_short_recording_is_decoded_as_while_training(said):
    clip = np.concatenate([silence(0.3), said[0], silence(0.9)])
    (piece,) = pieces_of(clip)
    assert np.array_equal(piece.samples, clip)


class Echo:
    """A model that says how many pieces it has heard; ``answers`` come first."""

    def __init__(self, answers: tuple[Heard, ...] = ()):
        self.cutting, self.answers, self.contexts, self.sizes = SHORT, list(answers), [], []

    def hear(self, clips, contexts=()):
        self.sizes.append(len(clips))
        self.contexts += contexts
        return [self.answers.pop(0) if self.answers else Heard("טוב", "Hebrew", False) for _ in clips]


@pytest.mark.parametrize("cores", [2, 16])
def test_batches_hold_pieces_of_several_recordings_and_bad_ones_are_told_in_order(said, cores, monkeypatch):
    monkeypatch.setattr(long_form, "usable_cores", lambda: range(cores))

    def broken():
        yield said[0]
        raise DataError("cut off")

    long = np.concatenate([np.concatenate([clip, silence(2)]) for clip in said[:3]])
    model = Echo()
    recordings = [("a", [long]), ("b", broken()), ("c", [silence(3)]), ("d", [said[1]]), ("e", [long])]
    outcomes = dict(transcribe_all(model, recordings, Options(batch_pieces=4)))
    assert list(outcomes) == list("abcde")
    assert isinstance(outcomes.pop("b"), DataError)
    assert {key: len(outcome.segments) for key, outcome in outcomes.items()} == {"a": 3, "c": 0, "d": 1, "e": 3}
    assert model.sizes == [4, 3]


def test_pieces_of_like_length_are_decoded_together_and_told_in_order(said):
    class Lengths(Echo):
        def hear(self, clips, contexts=()):
            self.sizes.append([len(clip) for clip in clips])
            return [Heard(str(len(clip)), "Hebrew", False) for clip in clips]

    long = [np.concatenate([np.concatenate([clip, silence(2)]) for clip in part]) for part in (said[:4], said[4:])]
    alone, together = Lengths(), Lengths()
    outcomes = [
        [found.segments for _, found in transcribe_all(model, enumerate([sound] for sound in long), options)]
        for model, options in ((alone, Options(batch_pieces=1, batches_at_once=1)), (together, Options(batch_pieces=4)))
    ]
    assert outcomes[0] == outcomes[1] and [len(segments) for segments in outcomes[0]] == [4, 4]
    lengths = [length for batch in together.sizes for length in batch]
    assert lengths == sorted(lengths) and [len(batch) for batch in together.sizes] == [4, 4]


def test_programs_give_sound_in_many_forms(said, tmp_path):
    """All of these are the same recording."""
    content, sound = io.BytesIO(), said[0]
    soundfile.write(content, sound, RATE, "FLOAT", format="WAV")
    (tmp_path / "a.wav").write_bytes(content.getvalue())
    content.seek(0)
    exact = [
        *(str(tmp_path / "a.wav"), tmp_path / "a.wav", content.getvalue(), bytearray(content.getvalue()), content),
        *(sound.astype(np.float64), np.repeat(sound, 2)[::2], np.stack([sound, sound]), np.stack([sound, sound], 1)),
        *(torch.from_numpy(sound), torch.from_numpy(sound)[None].requires_grad_()),
    ]
    near = [
        *((sound * 32767).astype(np.int16), (sound * 32767).astype(">i2"), (sound * (2**31 - 256)).astype(np.int32)),
        *(sound.astype(np.float16), torch.from_numpy(sound).bfloat16(), (sound * 127 + 128.5).astype(np.uint8)),
    ]
    for given in (*exact, *near):
        heard = np.concatenate(list(blocks_of_any(given, RATE)))
        np.testing.assert_allclose(heard, sound, atol=0 if any(given is one for one in exact) else 0.01)
    faster = np.concatenate(list(blocks_of_any(np.repeat(sound, 3), 3 * RATE)))
    assert len(faster) == pytest.approx(len(sound), abs=2)


@pytest.mark.parametrize(
    ("given", "rate_hz", "told"),
    [
        (["a.wav"], RATE, "a list"),
        (None, RATE, "a NoneType"),
        (io.StringIO("text"), RATE, "a StringIO"),
        (np.zeros((2, 3, 4), np.float32), RATE, "shape"),
        (np.zeros(0, np.float32), RATE, "shape"),
        (np.zeros((100, 100), np.float32), RATE, "shape"),
        (np.zeros(9, np.int64), RATE, "int64"),
        (np.zeros(9, np.float32), 0, "rate_hz"),
        (np.zeros(9, np.float32), "16000", "rate_hz"),
        (np.zeros(9, np.float32), None, "rate_hz"),
        (np.full(9, np.nan, np.float32), RATE, "the array: it holds NaN"),
        (np.full(9, 900.0, np.float32), RATE, "1 is full scale"),
        (b"no sound", RATE, "cannot use audio"),
        ("", RATE, "cannot use audio"),
    ],
)
def test_what_is_no_sound_is_a_typed_error(given, rate_hz, told):
    with pytest.raises((UsageError, DataError), match=told):
        list(blocks_of_any(given, rate_hz))


def test_previous_text_is_context_only_when_asked(said):
    long = np.concatenate([np.concatenate([clip, silence(2)]) for clip in said[:3]])
    for asked, expected in ((True, ["שמות", "שמות טוב", "שמות טוב טוב"]), (False, ["שמות"] * 3)):
        model = Echo()
        list(transcribe_all(model, [(0, [long])], Options("שמות", condition_on_previous=asked)))
        assert model.contexts == expected


@pytest.mark.parametrize("count", [0, -1])
def test_no_pieces_at_a_time_are_refused(count):
    with pytest.raises(UsageError, match=f"batch_pieces is {count}"):
        Options(batch_pieces=count)


@pytest.mark.timeout(10)
def test_the_language_of_most_segments_is_found_in_no_time():
    names = ["Hebrew", *(f"{number}" for number in range(60_000)), None, "Arabic", "Arabic"]
    segments = tuple(Segment(0.0, 1.0, "שלום", name) for name in names)
    assert Transcript(segments, 1.0).language == "Arabic" and Transcript(segments[:9], 1.0).language == "Hebrew"


def test_a_prompt_that_takes_longer_than_the_sound_is_refused():
    assert Options("שם " * 3000).prompt
    with pytest.raises(UsageError, match="500,000 characters, and 10,000 at most"):
        Options("מילה " * 100_000)


def test_invention_is_tried_again_then_marked(said):
    loop = Heard("תותים " * 40, "Hebrew", True)
    good = Heard("סבתא", "Hebrew", False)
    (_, cured), *_ = transcribe_all(Echo((loop, good, good)), [(0, [said[0]])])
    assert (cured.text, cured.segments[0].suspect) == ("סבתא סבתא", None)
    (_, marked), *_ = transcribe_all(Echo((loop, loop, loop)), [(0, [said[0]])])
    assert (marked.text, marked.segments[0].suspect) == ("תותים", "repetition")


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("תותים " * 6, True),
        ("אני רוצה, " * 4, True),
        ("לא לא לא", False),
        ("כן כן כן לא לא לא", False),
        ("", False),
        ("הילדה אוכלת תפוח גדול בגן ואחר כך היא הולכת הביתה עם אמא ואבא וסבתא לאכול ארוחת ערב", False),
        ("אאאא" * 60, True),
    ],
)
def test_loops_are_told_from_speech(text, is_loop):
    assert (suspicion(text) is not None) == is_loop
    assert suspicion(text, is_cut=True)
    assert find_loop(without_loops(text).split()) is None


def test_inputs_are_files_folders_and_patterns_each_once(tmp_path, monkeypatch):
    for name in ("a/b/x.wav", "a/y.MP3", "a/.hidden.wav", "a/notes.txt", "z[1].wav", "z1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    inputs, errors = find_inputs(
        ["a", "./a/y.MP3", "z[1].wav", "*.wav", "-", "/dev/stdin", "empty", "no*", "gone.wav", "x" * 300]
    )
    assert [one.name for one in inputs] == ["a/y.MP3", "a/b/x.wav", "z[1].wav", "z1.wav", "-"]
    assert [str(error).split(" (")[0][:32] for error in errors] == [
        "folder empty holds no audio file",
        "no file matches no*",
        "cannot use audio gone.wav: file ",
        "cannot use audio " + "x" * 15,
    ]


def test_pipe_is_an_input(tmp_path):
    import threading

    soundfile.write(tmp_path / "a.wav", np.full(RATE, 0.1, np.float32), RATE)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "a.wav").read_bytes()))
    writer.start()
    assert sum(map(len, Input(str(pipe)).blocks())) == RATE
    writer.join()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["", "*.wav"])
def test_a_pipe_that_was_not_named_itself_is_told_instead_of_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.wav")
    (one,), errors = find_inputs([str(tmp_path / name)])
    with pytest.raises(DataError, match=r"pipe\.wav: it is a pipe"):
        list(one.blocks())
    assert not errors


def test_output_names_never_collide():
    names = ["/m/a/talk.mp3", "/m/b/talk.mp3", "/m/b/talk.wav", "/m/b/Other.wav", "/m/c/other.wav", "-", "/m/one.wav"]
    paths = output_paths([Input(name) for name in names], Path("out"), "srt")
    assert len({str(path).casefold() for path in paths}) == len(names)
    assert paths[-2:] == [Path("out/stdin.srt"), Path("out/one.srt")]
    assert paths[2] == Path("out/talk.wav.srt")
    assert all(path.is_relative_to("out") and ".." not in path.parts for path in paths)


def test_outputs_lie_below_out_wherever_the_inputs_do(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths = output_paths([Input("talk.mp3"), Input("../there/talk.mp3")], Path("out"), "srt")
    assert paths == [Path("out/here/talk.mp3.srt"), Path("out/there/talk.mp3.srt")]


def test_output_names_fit_the_file_system(tmp_path):
    names = [f"{'ש' * 125}.ts", f"{'ש' * 124}ת.ts", f"b/{'ש' * 125}.ts", "ש.ts"]
    paths = output_paths([Input(name) for name in names], tmp_path / "out", "json")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    assert [path.name for path in paths[-1:]] == ["ש.json"]
    assert {path.suffix for path in paths} == {".json"} and all(path.is_relative_to(tmp_path / "out") for path in paths)


def test_a_folder_in_the_place_of_an_output_is_told_before_anything_is_decoded(tmp_path, capfd):
    (tmp_path / "talk.srt").mkdir()
    for option in ("--overwrite", "--skip-existing"):
        place = ["--out", str(tmp_path), "--format", "srt", option]
        (tmp_path / "talk.wav").touch()
        assert main(["transcribe", "--model", "none", str(tmp_path / "talk.wav"), *place]) == 2
        assert f"{tmp_path / 'talk.srt'} is a folder" in capfd.readouterr().err


def test_run_folder_stands_for_its_final_and_that_of_an_export_for_its_hf(tmp_path, capfd):
    (tmp_path / "export" / "hf").mkdir(parents=True)
    assert model_folder(str(tmp_path / "export")) == str(tmp_path / "export" / "hf")
    (tmp_path / "recipe.json").write_text('{"data": {"max_duration_s": 12}}')
    with pytest.raises(CheckpointError, match="without a final"):
        model_folder(str(tmp_path))
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000004" / "COMPLETE.json").touch()
    with pytest.raises(
        CheckpointError, match=r"step-000004 is a checkpoint, .*: `hebrew-asr export .*step-000004 --out"
    ):
        model_folder(str(tmp_path / "checkpoints" / "step-000004"))
    (tmp_path / "final").mkdir()
    assert model_folder(str(tmp_path)) == str(tmp_path / "final")
    (tmp_path / "run.json").write_text('{"train_clips": 1000, "train_hours": 1}')
    assert cutting_of(tmp_path / "final") == Cutting(12.0, 3.6, 10.8)
    (tmp_path / "run.json").write_text('{"train_clips": 1000, "train_hours": 1, "train_longest_s": 8.5}')
    assert cutting_of(tmp_path / "final") == Cutting(12.0, 3.6, 8.5)
    (tmp_path / "run.json").write_text("[")
    assert cutting_of(tmp_path / "final") == Cutting(12.0, 5.0, 12.0)
    own = Cutting(11.0, 2.5, 9.25)
    write_cutting(tmp_path / "final", own)
    assert cutting_of(tmp_path / "final") == cutting_of(shutil.copytree(tmp_path / "final", tmp_path / "copy")) == own
    (tmp_path / "copy" / "pieces.json").write_text('{"max_s": 900, "typical_s": "long", "whole_s": -1}')
    assert cutting_of(tmp_path / "copy") == Cutting(30.0, 5.0, 15.0), "no more than the encoder hears"
    (tmp_path / "copy" / "pieces.json").write_text("{")
    capfd.readouterr()
    assert cutting_of(tmp_path / "copy") == Cutting(12.0, 5.0, 12.0)
    assert "pieces.json is damaged" in capfd.readouterr().err


SEGMENTS = (
    Segment(0.0, 2.0, "שלום עולם", "Hebrew"),
    Segment(2.1, 4.0, "אני לומד C++ ו-Python, באמת?", "Hebrew"),
    Segment(10.0, 40.0, "הילדה אוכלת תפוח גדול בגן. " * 20, "Hebrew"),
    Segment(41.0, 41.2, "כן", "Hebrew"),
    Segment(3661.5, 3663.0, "a & b <i> --> c", "English", "endless"),
)


def test_cues_fit_the_screen_and_the_reader():
    found = cues(SEGMENTS)
    assert all(len(cue.lines) <= 2 for cue in found)
    plain = [[line.strip("⁦⁧⁨⁩") for line in cue.lines] for cue in found]
    assert all(len(line) <= LINE_CHARACTERS + 2 for lines in plain for line in lines)  # isolates within
    assert all(cue.end_s - cue.start_s <= 7.001 for cue in found)
    assert all(a.end_s <= b.start_s + 1e-9 and a.start_s < a.end_s for a, b in pairwise(found))
    said = " ".join(segment.text for segment in SEGMENTS).split()
    assert " ".join(line for lines in plain for line in lines).translate(dict.fromkeys(map(ord, "⁦⁧⁨⁩"))).split() == said
    assert next(cue for cue in found if cue.lines == ("כן",)).end_s == pytest.approx(41.0 + 5 / 6)
    assert [cue.end_s for cue in cues([Segment(1, 30, "כן"), Segment(40, 60, "לא עכשיו")])] == [8, 47]
    (cue,) = cues([Segment(0, 3, "https://" + "x" * 60)])
    assert all(len(line) <= LINE_CHARACTERS for line in cue.lines)


def test_isolates_stand_where_text_would_jump_and_nowhere_else():
    def line(text: str) -> str:
        return cues([Segment(0, 5, text)])[0].lines[0]

    assert line("שלום עולם") == "שלום עולם"
    assert line("hello, world!") == "hello, world!"
    assert line("באמת?") == "\u2067באמת?\u2069"
    assert line("אני לומד C++ היום.") == "\u2067אני לומד \u2068C++\u2069 היום.\u2069"
    assert line("אני לומד Python.") == "\u2067אני לומד Python.\u2069"


def test_formats_are_those_of_whisper():
    transcript = Transcript(SEGMENTS, 3700.0)
    srt = formatted(transcript, "srt", "a.wav")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,000\nשלום עולם\n\n2\n00:00:02,100 --> ")
    assert srt.count("-->") == len(cues(SEGMENTS))
    vtt = formatted(transcript, "vtt", "a.wav")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nשלום עולם\n")
    assert "\n01:01:01.500 --> 01:01:03.000\na &amp; b &lt;i&gt; --&gt; c\n" in vtt
    assert formatted(transcript, "tsv", "").splitlines()[:2] == ["start\tend\ttext", "0\t2000\tשלום עולם"]
    values = json.loads(formatted(transcript, "json", "a.wav"))
    assert values["file"] == "a.wav"
    assert values["segments"][0] == {"id": 0, "start": 0.0, "end": 2.0, "text": "שלום עולם"}
    assert values["segments"][4]["suspect"] == "endless"
    assert formatted(transcript, "txt", "").splitlines()[0] == "שלום עולם"
    assert formatted(Transcript((), 3.0), "vtt", "") == "WEBVTT\n"
    short = Transcript((Segment(0.1, 0.2, "כן"), Segment(0.288, 0.65, "הילדה שותה")), 0.7)
    for form, end in (("srt", "00:00:00,700\n"), ("vtt", "00:00:00.700\n")):
        assert f" --> {end}" in formatted(short, form, ""), "read for 0.8 s, but the recording ends before"
