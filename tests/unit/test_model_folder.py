"""Model folders of somebody else's: one line and exit code 5 for whatever is wrong, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from hebrew_asr.cli import main
from hebrew_asr.config.recipe import Model
from hebrew_asr.errors import CheckpointError
from hebrew_asr.model.load import load_model
from tests.support.tiny_task import SPEC, WORDS

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from hebrew_asr.demo.tiny import save_tiny

    folder = tmp_path_factory.mktemp("whole")
    save_tiny(folder, SPEC, [" ".join(WORDS)], 0)
    soundfile.write(folder.with_name("a.wav"), np.zeros(8000), 16_000)
    return folder


@pytest.fixture
def model(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def sharded(model):
    """The same in two files and an index, as larger models are published."""
    weights = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    names = sorted(weights)
    places = {name: f"model-{1 + (i > len(names) // 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, model / file, {"format": "pt"})
    write(model / INDEX, {"metadata": {}, "weight_map": places})
    return model


def write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values), encoding="utf-8")


def change(file: Path, *keys: str, to: Any) -> None:
    values = part = json.loads(file.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        part = part[key]
    if to is KeyError:
        del part[keys[-1]]
    else:
        part[keys[-1]] = to
    write(file, values)


def refused(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a user sees, who has it transcribe a file."""
    capsys.readouterr()
    code = main(["transcribe", "--model", str(folder), str(whole.with_name("a.wav"))])
    told = capsys.readouterr()
    assert code == 5, told
    assert told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
    assert not told.out
    return told.err


def save_changed(folder: Path, changed: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    changed(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def header_says(folder: Path, name: str, **values: Any) -> None:
    """Rewrite the header of the weights in place: what it says of one tensor is no longer so."""
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header[name] |= values
    new = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])


def cut(file: Path, keep: float) -> None:
    os.truncate(file, int(file.stat().st_size * keep))


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4080000000\n"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: (d / WEIGHTS).write_text(POINTER), "Git LFS pointer"),
        (lambda d: cut(d / WEIGHTS, 0.7), "cut short"),
        (lambda d: os.truncate(d / WEIGHTS, 20), "cut short"),
        (lambda d: os.truncate(d / WEIGHTS, 5), "cut short"),
        (lambda d: os.truncate(d / WEIGHTS, 0), "cut short"),
        (lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + b"{}"), "damaged"),
        (lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"{}"), "weights"),
        (lambda d: (d / WEIGHTS).write_bytes(b"PK\x03\x04" * 99), "damaged"),
        (lambda d: header_says(d, NORM, dtype="F7"), "damaged"),
        (lambda d: header_says(d, NORM, dtype="I32"), f"{NORM} is of type I32"),
        (lambda d: header_says(d, NORM, data_offsets=[0, 1 << 40]), "damaged"),
        (lambda d: header_says(d, NORM, shape=[-1]), "damaged"),
        (lambda d: become_folder(d / WEIGHTS), "not a file"),
        (lambda d: (d / WEIGHTS).unlink(), "neither model.safetensors nor"),
        (lambda d: (d / WEIGHTS).rename(d / "other.safetensors"), "neither model.safetensors nor"),
        (lambda d: save_changed(d, lambda w: w[NORM].fill_(float("nan"))), f"{NORM} holds NaN"),
        (lambda d: save_changed(d, lambda w: w[NORM][3].fill_(float("-inf"))), f"{NORM} holds NaN or infinity"),
        (lambda d: save_changed(d, lambda w: w.update({NORM: w[NORM].double() * 1e300})), f"{NORM} holds NaN"),
        (lambda d: save_changed(d, lambda w: w.pop(NORM)), "1 missing"),
    ],
)
def test_weights_that_are_none(damage, told, model, whole, capsys):
    damage(model)
    assert told in refused(model, whole, capsys)


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (["model_type"], "whisper", "'whisper' model"),
        (["model_type"], KeyError, "None model"),
        (["audio_config"], KeyError, "no audio_config"),
        (["text_config"], [1], "no text_config"),
        (["text_config", "model_type"], "llama", "'llama' model"),
        (["text_config", "hidden_size"], "24", "describes no model"),
        (["text_config", "hidden_size"], 10**9, "which no model has"),
        (["text_config", "num_hidden_layers"], 10**6, "describes"),
        (["audio_config", "encoder_layers"], 10**6, "which no Qwen3-ASR has"),
        (["text_config", "num_hidden_layers"], -3, "describes no model"),
        (["text_config", "vocab_size"], 4_000_000, "far larger model"),
        (["text_config", "rms_norm_eps"], float("nan"), "which no model has"),
        (["text_config", "hidden_act"], "os.system", "cannot be loaded"),
        (["text_config", "rope_parameters"], "x", "describes no model"),
        (["audio_config", "d_model"], 0, "which no model has"),
        (["audio_config", "d_model"], 1 << 20, "which no"),
        (["audio_config", "dropout"], float("inf"), "which no model has"),
        (["audio_config", "encoder_attention_heads"], 3, "cannot be loaded"),
        (["audio_token_id"], 10**6, "not in the vocabulary"),
        (["audio_token_id"], 5, "of another model than its config.json"),
        (["quantization_config"], {"quant_method": "gptq", "bits": 4}, "quantized"),
        (["thinker_config"], "x", "no JSON object"),
        (["thinker_config"], {"audio_config": {}, "text_config": {}}, "describes no model"),
    ],
)
def test_configs_of_something_else(keys, value, told, model, whole, capsys):
    change(model / "config.json", *keys, to=value)
    assert told in refused(model, whole, capsys)


@pytest.mark.parametrize(
    "name", ["config.json", INDEX, "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_files_that_are_not_json(name, sharded, whole, capsys):
    for content in (b"", b"{", b"[1]", b"\xff\xfe{\0}\0", POINTER.encode(), b"[" * 100_000):
        (sharded / name).write_bytes(content)
        refused(sharded, whole, capsys)
    become_folder(sharded / name)
    assert "not a file" in refused(sharded, whole, capsys)


def test_tokenizers_of_another_model(model, whole, capsys):
    change(model / "tokenizer.json", "model", "vocab", to={"a": 0})
    refused(model, whole, capsys)
    shutil.copy(whole / "tokenizer.json", model)
    values = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "<asr_text>"]
    write(model / "tokenizer.json", values)
    assert "has no <asr_text>" in refused(model, whole, capsys)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert "no usable tokenizer" in refused(model, whole, capsys)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/absolute.safetensors", "sub/../../outside.safetensors"])
def test_an_index_stays_in_its_folder(place, sharded, whole, capsys):
    first = sharded / "model-00001-of-00002.safetensors"
    shutil.copy(first, sharded.with_name("outside.safetensors"))
    place = str(sharded.with_name("outside.safetensors")) if place.startswith("/") else place
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(
        sharded / INDEX, "weight_map", to={name: place if file == first.name else file for name, file in listed.items()}
    )
    assert "no safetensors file of its folder" in refused(sharded, whole, capsys)


def test_shards_that_do_not_fit_their_index(sharded, whole, capsys):
    first, second = sorted(sharded.glob("*.safetensors"))
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    for to, told in (
        ({**listed, "model.extra": first.name}, "lacks 1 tensors"),
        ({**listed, min(listed): second.name}, "does not look for there"),
        ({**listed, max(listed): "model-00003-of-00002.safetensors"}, "does not look for there"),
        (dict.fromkeys(listed, "pytorch_model.bin"), "no safetensors file"),
        (dict.fromkeys(listed, 3), "no weight_map"),
        ({}, "no weight_map"),
    ):
        change(sharded / INDEX, "weight_map", to=to)
        assert told in refused(sharded, whole, capsys)
    change(sharded / INDEX, "weight_map", to=listed)
    content = second.read_bytes()
    second.write_text(POINTER)
    assert "Git LFS pointer" in refused(sharded, whole, capsys)
    second.write_bytes(content[: len(content) // 2])
    assert f"{second} is damaged" in refused(sharded, whole, capsys)
    second.unlink()
    assert f"{second} is missing" in refused(sharded, whole, capsys)
    second.symlink_to(sharded.with_name("outside"))
    sharded.with_name("outside").write_bytes(content)
    assert "leads out of its folder" in refused(sharded, whole, capsys)


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_the_hub_s_cache_is_loaded(shared, sharded, whole, tmp_path):
    """Its files are links into the blobs of the repository, and these may be links into those of the whole cache."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (tmp_path / "hub" / "blobs").mkdir()
    for number, file in enumerate(sharded.iterdir()):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, tmp_path / "hub" / "blobs" / str(number) if shared else blob)
        if shared:
            blob.symlink_to(f"../../blobs/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    asr, expected = load_model(Model(str(snapshot))), load_model(Model(str(whole)))
    assert all(torch.equal(a, b) for a, b in zip(asr.parameters(), expected.parameters(), strict=True))


def test_names_that_are_not_utf8(sharded, whole, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le \xff"))
    shutil.copytree(sharded, folder)
    asr, expected = load_model(Model(str(folder))), load_model(Model(str(whole)))
    assert all(torch.equal(a, b) for a, b in zip(asr.parameters(), expected.parameters(), strict=True))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_model(Model(str(folder)))


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_nothing_in_a_folder_is_run(model, whole, tmp_path, capsys):
    """Neither pickles, whatever else lies beside them, nor code that a config names, nor other files that it names."""
    sprung = tmp_path / "sprung"
    code = f"import os\nos.mkdir({str(sprung)!r})\n"
    for name in ("modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "processing_trap.py"):
        (model / name).write_text(code)
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (model / name).write_bytes(pickle.dumps(Trap(sprung)))
    write(model / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "other"), "peft_type": "LORA"})
    config = {f"Auto{kind}": f"modeling_trap.{kind}" for kind in ("Config", "Model", "ModelForSpeechSeq2Seq")}
    for key, value in {
        "auto_map": config,
        "transformers_weights": "adapter_model.bin",
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "fusion_config": {"trap": "modeling_trap.Model"},
        "dtype": "float64",
    }.items():
        change(model / "config.json", key, to=value)
        change(model / "config.json", "text_config", key, to=value)
    change(
        model / "tokenizer_config.json",
        "auto_map",
        to={"AutoTokenizer": ["tokenization_trap.T", "tokenization_trap.T"]},
    )
    asr, expected = load_model(Model(str(model))), load_model(Model(str(whole)))
    assert all(torch.equal(a, b) for a, b in zip(asr.parameters(), expected.parameters(), strict=True))
    assert main(["transcribe", "--model", str(model), str(whole.with_name("a.wav"))]) == 0
    change(model / "tokenizer_config.json", "tokenizer_class", to="TrapTokenizer")
    assert main(["transcribe", "--model", str(model), str(whole.with_name("a.wav"))]) == 0
    (model / WEIGHTS).rename(model / "stray.safetensors")
    refused(model, whole, capsys)
    assert not sprung.exists()
