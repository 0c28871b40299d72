"""``eval``: the same numbers as ``score`` of what it heard; long, broken and nameless recordings are told."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from hebrew_asr.cli import main
from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.demo.tiny import save_tiny
from hebrew_asr.errors import EnvironmentProblem, UsageError
from hebrew_asr.evaluation import leaderboard
from hebrew_asr.evaluation.devices import heard_on
from hebrew_asr.evaluation.test_sets import open_test_set
from hebrew_asr.inference.transcriber import Transcriber
from tests.support.tiny_task import SPEC, WORDS

pytestmark = pytest.mark.integration

TEXTS = ["שלום עולם", "ילדה כותבת סיפור", "היום בבית"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny(folder / "final", SPEC, [" ".join(WORDS)], 0)
    return folder


def sound(seconds: float, seed: int) -> np.ndarray:
    """Noise; of more than 30 s speech, of which a long recording is searched."""
    if seconds > 30:
        said = np.pad(speak(full_sentences()[seed].phonemes, Voice("m3", 180, 45)), (8_000, 8_000))
        return np.resize(said, int(16_000 * seconds))
    return (np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 0.1).astype(np.float32)


def write_manifest(folder: Path, seconds: tuple[float, ...], broken: bool = False) -> Path:
    rows = []
    for index, length in enumerate(seconds):
        name = f"a & b {index}.wav"
        soundfile.write(folder / name, sound(length, index), 16_000)
        text = f"language Hebrew<asr_text>{TEXTS[index % 3]}"
        rows.append({"audio": name, "text": text, "id": f"clip{index}", "duration_s": length, "group": f"g{index % 2}"})
    if broken:
        (folder / rows[-1]["audio"]).write_bytes(b"RIFF no sound")
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "eval.jsonl"


def test_eval_is_score_of_what_it_heard(run_folder, tmp_path, capfd):
    manifest, out = write_manifest(tmp_path, (0.7, 1.3, 0.4, 31.0)), tmp_path / "out"
    arguments = ["eval", "-m", str(run_folder), "--data", str(manifest.parent), "--batch", "3"]
    assert main([*arguments, "-l", "he", "-o", str(out), "--json"]) == 0
    told = capfd.readouterr()
    found, results = json.loads(told.out), [file.read_bytes() for file in sorted(out.iterdir())]
    assert found["wer"] == found["modes"]["strict"]["wer"] and found["clips"] == 4 and found["language"] == "Hebrew"
    assert found["longer_than_30_s"] == 1 and "clip3: longer than 30 s (31.0 s): transcribed as a" in told.err
    heard = {row["id"]: row["hypothesis"] for row in map(json.loads, (out / "hypotheses.jsonl").open(encoding="utf-8"))}
    assert main(["transcribe", "--model", str(run_folder), "--format", "json", str(tmp_path / "a & b 3.wav")]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == heard["clip3"] != ""
    texts, files = tmp_path / "texts", [str(tmp_path / f"a & b {number}.wav") for number in (0, 3)]
    asked = ["transcribe", "-m", str(run_folder), "-f", "all", "-o", str(texts), *files]
    assert main([*asked, str(tmp_path / "gone.wav")]) == 3 and main(asked) == 2
    written = {file.name: file.read_text(encoding="utf-8") for file in texts.iterdir()}
    assert len(written) == 10 and json.loads(written["a & b 3.json"])["text"] == heard["clip3"]
    (texts / "a & b 0.vtt").unlink()
    capfd.readouterr()
    assert main([*asked, "--skip-existing"]) == 0
    assert capfd.readouterr().err.startswith("1 of 2 recordings were transcribed before\n")
    assert {file.name: file.read_text(encoding="utf-8") for file in texts.iterdir()} == written
    for scored in ([str(out)], [str(manifest), str(out / "hypotheses.jsonl")]):
        assert main(["score", *scored, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["modes"]["strict"]["wer"] == found["wer"]
    page = (out / "clips.html").read_text(encoding="utf-8")
    assert 'src="../a%20%26%20b%200.wav"' in page and page.count("<audio") == 4
    assert (out / "clips.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    for other in (["score", str(out)], [*arguments, "--language", "auto"]):
        capfd.readouterr()
        assert main([*other, "--out", str(out)]) == 2 and f"results of {run_folder} on" in capfd.readouterr().err
    assert [file.read_bytes() for file in sorted(out.iterdir())] == results, "hours of decoding"
    # Batch mates change nothing, and neither does the order.
    assert main([*arguments[:-1], "1", "--hypotheses", str(tmp_path / "h.jsonl")]) == 0
    assert (tmp_path / "h.jsonl").read_text() == (out / "hypotheses.jsonl").read_text()
    assert main(["compare", str(out), str(tmp_path / "h.jsonl")]) == 0


def test_a_recording_that_cannot_be_read_is_told_and_counts_as_heard_empty(run_folder, tmp_path, capfd):
    manifest, out = write_manifest(tmp_path, (0.7, 1.3), broken=True), tmp_path / "out"
    model = str(run_folder / "final")
    assert main(["eval", "--model", model, "--data", str(manifest), "--out", str(out), "--json"]) == 3
    told = capfd.readouterr()
    assert json.loads(told.out)["unreadable"] == 1 and "a & b 1.wav" in told.err and "heard empty" in told.err
    rows = [json.loads(line) for line in (out / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[1]["hypothesis"] == "" and rows[1]["note"].startswith("unreadable")


def parquet(folder: Path, name: str, text: str = "text", clips: int = 2) -> Path:
    """A set as the leaderboard's are published."""
    from datasets import Audio, Dataset

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(clips):
        soundfile.write(folder / "a.flac", sound(0.5 + index, index), 16_000)
        audio = {"bytes": (folder / "a.flac").read_bytes(), "path": None}
        rows.append({"audio": audio, text: TEXTS[index], "uuid": f"u{index}", "speaker_id": index})
    (folder / "a.flac").unlink()
    Dataset.from_list(rows).cast_column("audio", Audio(decode=False)).to_parquet(str(folder / name))
    return folder / name


def test_a_copy_of_the_leaderboards_sets(run_folder, tmp_path, capfd, monkeypatch):
    parquet(tmp_path / "latest" / "data", "test-00000-of-00001.parquet")
    parquet(tmp_path / "latest" / "data", "train-00000-of-00001.parquet", clips=3)
    kan = parquet(tmp_path / "kan", "validation.parquet", "sentence")
    sets = ["--set", f"eval-d1={tmp_path / 'latest'}", "--set", str(kan)]
    assert main(["eval", "--model", str(run_folder), *sets, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["clips"] == 4 and set(found["modes"]["ivrit"]["slices"]["source"]) == {"eval-d1", "validation"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "hypotheses.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == TEXTS[:2] * 2 and rows[0]["id"] == "eval-d1/u0"
    assert rows[0]["group"] == "eval-d1/0"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for wrong, code in ((["--set", "eval-d2"], 2), (["--set", "saspeech=nowhere"], 3), ([], 2)):
        assert main(["eval", "--model", str(run_folder), *wrong]) == code
    assert "eval-d1?" in capfd.readouterr().err
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    parquet(tmp_path, "other.parquet", "words")
    for name in ("bad", "other"):
        assert main(["eval", "--model", str(run_folder), "--set", str(tmp_path / f"{name}.parquet")]) == 3
    assert "Traceback" not in capfd.readouterr().err


def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    """``datasets`` asks six times, with pauses of 23 s in all."""
    import datasets  # seconds by itself

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        started = time.monotonic()
        with pytest.raises(EnvironmentProblem, match="eval-d1 cannot be fetched; check the network"):
            next(open_test_set("eval-d1"))
    assert time.monotonic() - started < 15


def test_a_saved_data_set_is_read_too(tmp_path):
    from datasets import DatasetDict, load_dataset

    held = load_dataset("parquet", data_files=str(parquet(tmp_path, "a.parquet")), cache_dir=str(tmp_path / "cache"))
    assert isinstance(held, DatasetDict)
    held["train"].save_to_disk(str(tmp_path / "one"))
    DatasetDict(test=held["train"]).save_to_disk(str(tmp_path / "dict"))
    for name in ("one", "dict"):
        assert [utterance.reference for utterance in open_test_set(str(tmp_path / name))] == TEXTS[:2]


def test_the_leaderboards_engine_says_what_eval_hears(run_folder, tmp_path):
    """Loaded by its path, as ``run_bench.py`` does."""
    spec = importlib.util.spec_from_file_location("engine", leaderboard.__file__)
    assert spec is not None and spec.loader is not None
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    transcribe = engine.create_app(model_path=str(run_folder / "final"), device="cuda", lang="he")
    manifest = write_manifest(tmp_path, (0.7, 31.0))
    hypotheses = tmp_path / "h.jsonl"
    model = str(run_folder)
    assert main(["eval", "--model", model, "--data", str(manifest), "--hypotheses", str(hypotheses)]) == 0
    rows = [json.loads(line) for line in hypotheses.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        samples, rate = soundfile.read(tmp_path / f"a & b {index}.wav")
        text, seconds = transcribe({"audio": {"array": samples, "sampling_rate": rate}})
        assert text == row["hypothesis"] and seconds > 0
        stereo = np.stack([samples, samples])
        assert transcribe({"audio": {"array": stereo, "sampling_rate": rate}})[0] == text


def test_the_ivrit_package_has_a_model_of_ours(run_folder, tmp_path):
    """Skipped where the package is not installed: nothing else needs it."""
    pytest.importorskip("ivrit")
    from hebrew_asr.serving.ivrit_package import load_model

    model, file = load_model(model=str(run_folder)), tmp_path / "a.wav"
    soundfile.write(file, sound(31.0, 0), 16_000)
    expected = Transcriber.load(str(run_folder)).transcribe(file)
    found = model.transcribe(path=str(file), language="he")
    assert (found["text"], found["language"], found["engine"]) == (expected.text, "he", "hebrew-asr")
    times = [(segment.start, segment.end) for segment in found["segments"]]
    assert times == [(segment.start_s, segment.end_s) for segment in expected.segments] and len(times) > 1
    blob = base64.b64encode(file.read_bytes()).decode()
    assert [segment.text for segment in model.transcribe(blob=blob, stream=True)] == [
        segment.text for segment in expected.segments
    ]
    with pytest.raises(NotImplementedError, match="who speaks"):
        model.transcribe(path=str(file), diarize=True)
    with pytest.raises(UsageError, match="did you mean Hebrew"):
        model.transcribe(path=str(file), language="Hebrow")


def test_devices_share_the_clips_and_hear_what_one_does(run_folder, tmp_path, capfd):
    manifest = write_manifest(tmp_path, (0.7, 1.3, 0.4, 31.0, 0.9), broken=True)
    arguments = ["eval", "--model", str(run_folder), "--data", str(manifest), "--json", "--hypotheses"]
    figures = []
    for device in ("cpu", "cpu,cpu"):
        assert main([*arguments, str(tmp_path / f"{device}.jsonl"), "--device", device]) == 3
        told = capfd.readouterr()
        figures.append(json.loads(told.out))
        assert "a & b 4.wav" in told.err and "clip3: longer than 30 s" in told.err
    assert figures[0] == figures[1] and figures[0]["unreadable"] == 1
    assert len({(tmp_path / f"{name}.jsonl").read_bytes() for name in ("cpu", "cpu,cpu")}) == 1
    assert main([*arguments, str(tmp_path / "no.jsonl"), "--device", "cpu,rocket"]) == 2
    (damaged := shutil.copytree(run_folder, tmp_path / "damaged") / "final" / "config.json").write_text("{")
    assert main(["eval", "--model", str(damaged.parent), "--data", str(manifest), "--device", "cpu,cpu"]) == 5
    assert "config.json is not JSON" in capfd.readouterr().err


def test_a_process_that_is_killed_is_told():
    with pytest.raises(EnvironmentProblem, match="what decoded on cpu was killed"):
        list(heard_on(["cpu", "cpu"], killed, list, 1))


def test_processes_end_with_an_eval_that_is_killed(tmp_path):
    """It can tell them nothing then, and each would keep its model on a GPU."""
    program = (
        "import sys; from functools import partial; from tests.integration.test_eval import heard_on, waiting; "
        "list(heard_on(['cpu', 'cpu'], partial(waiting, sys.argv[1]), list, 1))"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=Path(__file__).parents[2]) as parent:
        while len(pids := [int(file.name) for file in tmp_path.iterdir()]) < 2:
            assert parent.poll() is None
            time.sleep(0.1)
        started = [psutil.Process(pid) for pid in pids]
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    for process in left:
        process.kill()
    assert not left


def test_a_fault_of_ours_in_a_process_is_told_as_what_it_is():
    with pytest.raises(RuntimeError, match=r"decoding on cpu failed\n(.*\n)*UnicodeDecodeError"):
        list(heard_on(["cpu", "cpu"], faulty, list, 1))


def faulty(device: str) -> Transcriber:
    raise AssertionError(device, b"\xff".decode())


def killed(device: str) -> Transcriber:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(device)


def waiting(folder: str, device: str) -> Transcriber:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
    raise AssertionError(device)
