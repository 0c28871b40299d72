"""The Arrow file of a manifest: the same clips, steps and shapes as its text gives, and never one that is stale."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.cli import main
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import index_manifest, open_manifest, read_lines, read_manifest
from hebrew_asr.data.mapped import open_mapped, write_mapped
from hebrew_asr.data.records import Records
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.data.shapes import Shape
from hebrew_asr.data.vocabulary import new_words, training_vocabulary
from hebrew_asr.errors import DataError
from hebrew_asr.planning.bench_corpus import draw_clips
from hebrew_asr.planning.plan import LengthTokenizer
from hebrew_asr.text.prompt import build_target, vocabulary
from tests.support.native import build

CLIPS = [
    Clip("clips/a/1.flac", build_target("שלום, עולם"), "א/1", 1.25, "דובר"),
    Clip("clips/a/\udcf92.flac", build_target("שִׂיחָה"), "א/2", 0.1 + 0.2),
    Clip("clips/b/1.flac", "כן", "ב#1", 3.0, "g"),
    Clip("0.flac", build_target("אחד שתיים"), "0", 14.999),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    for clip in CLIPS:
        (tmp_path / clip.audio).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / clip.audio).touch()
    write_text(tmp_path, CLIPS)
    return tmp_path


def write_text(folder: Path, clips: list[Clip]) -> None:
    lines = (json.dumps(asdict(clip)) for clip in clips)
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


@pytest.fixture
def no_fallback():
    """Reading the text instead is told as a warning; here it is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_what_is_mapped_is_what_was_written(folder, no_fallback, capsys):
    text = open_manifest(folder / "train.jsonl")
    assert main(["index", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'train.arrow'}\n"
    mapped = open_manifest(folder / "train.jsonl")
    alone = folder / "train.arrow"
    assert list(mapped) == list(text) == [mapped[index] for index in range(4)] == list(open_manifest(alone))
    assert [clip.audio for clip in mapped] == [f"{folder}/{clip.audio}" for clip in CLIPS]
    assert [(clip.text, clip.id, clip.duration_s, clip.group) for clip in mapped] == [
        (clip.text, clip.id, clip.duration_s, clip.group) for clip in CLIPS
    ]
    lines = "".join(f"{clip.id}\t{clip.duration_s!r}\t{clip.text}\n" for clip in CLIPS)
    assert mapped.fingerprint == text.fingerprint == sha256(lines.encode()).hexdigest()
    assert not mapped.durations_s.flags.owndata and not mapped.durations_s.flags.writeable
    (folder / "train.jsonl").unlink()
    assert list(open_manifest(folder / "train.jsonl")) == list(text), "the Arrow file stands for the text"
    moved = folder.rename(folder.with_name("moved"))
    assert [clip.audio for clip in open_manifest(moved / "train.jsonl")] == [f"{moved}/{clip.audio}" for clip in CLIPS]


def test_columns_in_files_are_those_in_memory_and_leave_no_file(folder, monkeypatch):
    monkeypatch.setattr("hebrew_asr.data.clips._CLIPS_AT_ONCE", 3)
    whole = {"check_audio": False, "allow_outside": True}
    before = sorted(folder.iterdir())
    held = read_lines(folder / "train.jsonl", **whole, scratch=folder)
    assert sorted(folder.iterdir()) == before
    assert held.batch.equals(read_lines(folder / "train.jsonl", **whole).batch)
    assert list(held) == read_manifest(folder / "train.jsonl", check_audio=False)


def test_records_in_a_file_are_sent_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setattr("hebrew_asr.data.records._AT_ONCE", 7)
    clips = [Clip(f"{n}.flac", "text " * 1000, f"id {n}", n + 0.5) for n in range(40)]
    part = Records(Clip, clips, tmp_path / "clips")[5:20]
    sent = pickle.dumps(part)
    assert len(sent) < 5000
    assert list(pickle.loads(sent)) == list(part) == clips[5:20]
    part.replace([6], group="changed")  # which is not in the file
    assert [clip.group for clip in pickle.loads(pickle.dumps(part))] == ["", "changed", *[""] * 13]


@given(st.slices(9), st.slices(9))
def test_a_slice_is_that_of_a_list(one, other):
    whole = [Clip(f"{index}.wav", f"text {index}", f"id {index}", index + 0.5, "g") for index in range(9)]
    clips = Clips.of(whole)
    assert Clips.of(clips) is clips
    part, expected = clips[one][other], whole[one][other]
    assert list(part) == expected and len(part) == len(expected)
    assert [part[index] for index in range(-len(part), len(part))] == expected * 2
    assert part.durations_s.tolist() == [clip.duration_s for clip in expected]
    assert part.column("id").to_pylist() == [clip.id for clip in expected]
    lines = "".join(f"{clip.id}\t{clip.duration_s!r}\t{clip.text}\n" for clip in expected)
    assert part.fingerprint == sha256(lines.encode()).hexdigest()


def test_what_is_gone_or_lies_outside_is_named_by_the_mapped_manifest_too(folder, no_fallback, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x.flac").touch()
    (folder / "clips" / "b" / "1.flac").unlink()
    (folder / "clips" / "b" / "1.flac").symlink_to(outside / "x.flac")  # a link below the folder is its owner's
    index_manifest(folder / "train.jsonl")
    assert len(open_manifest(folder / "train.jsonl")) == 4
    (folder / "0.flac").unlink()
    with pytest.raises(DataError, match=r"train\.arrow: clip 4: audio file not found: .*/0\.flac$"):
        open_manifest(folder / "train.jsonl")
    assert len(open_manifest(folder / "train.jsonl", check_audio=False)) == 4
    write_text(folder, [*CLIPS[:2], Clip(f"../{outside.name}/x.flac", "כן", "x", 1.0)])
    index_manifest(folder / "train.jsonl")
    for check_audio in (True, False):
        with pytest.raises(DataError, match=r"clip 3: audio path .* leaves the manifest's folder"):
            open_manifest(folder / "train.jsonl", check_audio=check_audio)
    assert open_manifest(folder / "train.jsonl", allow_outside=True)[2].audio == str(outside / "x.flac")


def other_text(folder: Path) -> None:
    write_text(folder, [*CLIPS[:3], Clip("0.flac", CLIPS[3].text, "9", 14.999)])


def shorter_text(folder: Path) -> None:
    write_text(folder, CLIPS[:3])


def flipped_bit(folder: Path) -> None:
    content = bytearray((folder / "train.arrow").read_bytes())
    content[content.rindex("שתיים".encode()) + 1] ^= 1
    (folder / "train.arrow").write_bytes(content)


def cut_short(folder: Path) -> None:
    content = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(content[: len(content) // 2])


def filtered(folder: Path) -> None:
    """By somebody's own program, which keeps the metadata."""
    with pyarrow.ipc.open_file(folder / "train.arrow") as reader:
        table = reader.read_all().slice(0, 2)
    with pyarrow.ipc.new_file(folder / "train.arrow", table.schema) as writer:
        writer.write_table(table)


def of_others(folder: Path) -> None:
    table = pyarrow.table({"audio": ["0.flac"], "text": ["כן"]})
    with pyarrow.ipc.new_file(folder / "train.arrow", table.schema) as writer:
        writer.write_table(table)


def empty(folder: Path) -> None:
    (folder / "train.arrow").write_bytes(b"")


@pytest.mark.parametrize("change", [other_text, shorter_text, flipped_bit, cut_short, filtered, of_others, empty])
def test_a_stale_or_damaged_file_is_told_and_not_believed(folder, change):
    text, arrow = folder / "train.jsonl", folder / "train.arrow"
    index_manifest(text)
    before = text.stat()
    change(folder)
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(RuntimeWarning, match=r"line by line.*20 times as long.*train\.arrow .*`hebrew-asr index"):
        clips = read_manifest(text)
    assert [clip.id for clip in clips] == [json.loads(line)["id"] for line in text.read_text().splitlines()]
    with pytest.raises(DataError, match=r"train\.arrow .*(another train.jsonl|changed|opened|not the Arrow file)"):
        open_manifest(arrow)
    if change not in (other_text, shorter_text):
        text.rename(folder / "elsewhere")
        with pytest.raises(DataError, match="make it anew"):
            open_manifest(text)


def test_a_file_of_others_is_not_overwritten(folder, capsys):
    of_others(folder)
    before = (folder / "train.arrow").read_bytes()
    assert main(["index", str(folder / "train.jsonl")]) == 2 and "move it" in capsys.readouterr().err
    assert (folder / "train.arrow").read_bytes() == before
    assert main(["index", str(folder / "train.arrow")]) == 2
    assert main(["index", str(folder / "clips")]) == 3


def test_steps_are_those_of_a_list_of_clips():
    """As they were dealt before there were columns: a resumed run takes the same clips in the same order."""
    rng = np.random.default_rng(0)
    seconds = np.round(rng.gamma(2.0, 2.3, 3000).clip(0.5, 15.0), 2).tolist()
    clips = [Clip(f"{i}.flac", build_target("שלום " * (i % 7 + 1) + "לך"), str(i), s) for i, s in enumerate(seconds)]
    batching = Batching(clips_per_step=64, num_ranks=2, accumulation=2, max_micro_batch=16)
    order = np.random.default_rng((7, 2)).permutation(3000)
    sampler = StepSampler(Clips.of(clips).durations_s, batching, 7)
    assert sampler.clips_of_step(2 * sampler.steps_per_epoch + 5) == order[5 * 64 : 6 * 64].tolist()
    assert sampler.deal(3) == StepSampler(seconds, batching, 7).deal(3)


@pytest.mark.parametrize("total_steps", [2, 90])
def test_ranks_that_share_the_choice_of_shapes_choose_as_each_alone(total_steps):
    clips = draw_clips("train", 2000)
    recipe = load_recipe("round2", ["augmentation.speed_factors=[0.9,1.0,1.1]"])
    batching = Batching(clips_per_step=64, num_ranks=3, accumulation=2, max_micro_batch=11)
    steps = [StepDataset(clips, batching, recipe, LengthTokenizer(), EncoderGeometry(), rank) for rank in range(4)]
    met, parts = Barrier(3, timeout=60), {}

    def chosen(rank: int) -> list[Shape]:
        def gather(found: list[list[Shape]]) -> list[list[list[Shape]]]:
            parts[rank] = found
            met.wait()
            return [parts[rank] for rank in range(3)]

        return steps[rank].fix_shapes(total_steps, ranks=SimpleNamespace(rank=rank, size=3, gather=gather))

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(chosen, range(3)))
    assert together == [steps[3].fix_shapes(total_steps)] * 3
    assert sum(map(len, parts.values())) == 2 * total_steps and max(map(len, parts.values())) <= 2 * 30


TEXTS = st.lists(
    st.text(st.sampled_from("אבגדהוזחטיכלמנ  \t\n\u00a0\u2003\u3000ֿ־״'\".,!?-–0127abcé́😀<|>"), max_size=20),
    max_size=8,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build()[1]


@given(texts=TEXTS)
def test_the_words_of_texts_have_the_tokens_of_the_texts(tokenizer, texts):
    targets = [build_target(text) for text in texts] + texts
    clips = Clips.of([Clip(f"{index}.wav", target, str(index), 1.0) for index, target in enumerate(targets)])
    expected = vocabulary(tokenizer, targets)
    assert training_vocabulary(tokenizer, clips) == expected
    with TemporaryDirectory() as folder:
        write_mapped(Path(folder, "train.arrow"), clips, "")
        mapped = Clips(open_mapped(Path(folder, "train.arrow"), None)[0], [""])
    shares = [training_vocabulary(tokenizer, mapped, rank, 3) for rank in range(3)]
    assert set.union(*shares) == expected
    part = mapped[len(texts) // 2 :]  # what is marked as new is not new to a part
    assert training_vocabulary(tokenizer, part) == vocabulary(tokenizer, targets[len(texts) // 2 :])


def test_each_word_is_kept_with_one_text_that_has_it(monkeypatch):
    """Looked at two texts at a time, and whatever white space they hold."""
    monkeypatch.setattr("hebrew_asr.data.vocabulary._TEXTS_AT_ONCE", 2)
    texts = ["א ב", "ג ב", "א ב", "ג ד", "ג  ד", "ג ב ד", "ג  ד", " ב"]
    found = new_words(pyarrow.array(texts, pyarrow.large_string())).to_pylist()
    assert found == [["א"], [" ב", "ג"], [], [" ד"], ["ג  ד"], [], [], []]
    assert new_words(pyarrow.array([], pyarrow.large_string())).to_pylist() == []
