"""Exports: both layouts hold one model, say what other programs go by, and are refused by name once damaged."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hebrew_asr.cli import main
from hebrew_asr.config.recipe import Model
from hebrew_asr.demo.tiny import build_tiny
from hebrew_asr.errors import CheckpointError
from hebrew_asr.inference.card import model_card
from hebrew_asr.inference.export import save_native, write_cutting
from hebrew_asr.inference.load import cutting_of
from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.inference.published import check_export
from hebrew_asr.model.layouts import mrope_section
from hebrew_asr.model.load import load_model, load_tokenizer
from tests.support.disks import small_disk
from tests.support.tiny_task import SPEC, WORDS

pytestmark = pytest.mark.integration

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A tied model, and one whose head was trained apart and whose config says so."""
    folder = tmp_path_factory.mktemp("models")
    asr, tokenizer = build_tiny(SPEC, [" ".join(WORDS)], 0)
    save_native(folder / "tied", asr, tokenizer)
    asr.lm_head.weight = nn.Parameter(torch.randn_like(asr.lm_head.weight) * 0.02)
    asr.config.tie_word_embeddings = asr.config.text_config.tie_word_embeddings = False
    save_native(folder / "untied", asr, tokenizer)
    return {name: folder / name for name in ("tied", "untied")}


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name, model in models.items():
        assert main(["export", str(model), "--out", str(folder / name)]) == 0
    return {name: folder / name for name in models}


def values(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_both_layouts_hold_the_model(models, exported, kind):
    expected = dict(load_model(Model(str(models[kind]))).named_parameters())
    assert ("lm_head.weight" in expected) == (kind == "untied")
    for layout in ("hf", "qwen_asr"):
        folder = exported[kind] / layout
        found = dict(load_model(Model(str(folder))).named_parameters())
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        assert load_tokenizer(str(folder)).get_vocab() == load_tokenizer(str(models[kind])).get_vocab()
        generation = values(folder / "generation_config.json")
        ids = load_tokenizer(str(folder)).convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
        assert generation["eos_token_id"] == ids and generation["max_new_tokens"] == 512
        checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
        assert checked.returncode == 0
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~umask()}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_thinker_config_says_what_others_go_by(exported, kind):
    folder = exported[kind] / "qwen_asr"
    config = values(folder / "config.json")
    thinker = config["thinker_config"]
    audio, text = thinker["audio_config"], thinker["text_config"]
    tokenizer = load_tokenizer(str(folder))
    assert text["tie_word_embeddings"] is config["tie_word_embeddings"] is (kind == "tied")
    assert sum(text["rope_scaling"]["mrope_section"]) == text["head_dim"] // 2 and text["rope_theta"] == 1e6
    assert (audio["model_type"], text["model_type"]) == ("qwen3_asr_audio_encoder", "qwen3_asr_text")
    assert (audio["max_source_positions"], audio["conv_chunksize"]) == (1500, 500)
    assert audio["num_hidden_layers"] == audio["encoder_layers"] == SPEC.encoder_layers
    tokens = ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
    told = [thinker[key] for key in ("audio_token_id", "audio_start_token_id", "audio_end_token_id")]
    assert told == [tokenizer.convert_tokens_to_ids(token) for token in tokens] and thinker["user_token_id"] == 872
    assert config["support_languages"][-1] == "Hebrew" and len(config["support_languages"]) == 31
    assert config["transformers_version"].startswith("5.")
    assert "thinker.lm_head.weight" in load_file(folder / WEIGHTS)
    assert isinstance(values(folder / "tokenizer_config.json")["extra_special_tokens"], dict)


def test_rotary_sections_of_the_published_model():
    assert mrope_section(128) == [24, 20, 20]
    assert all(sum(mrope_section(size)) == size // 2 for size in range(2, 300, 2))


def test_an_untied_head_that_the_config_calls_tied_is_refused(models, exported, tmp_path, capfd):
    for source, config, part in (
        (models["untied"], "config.json", ()),
        (exported["untied"] / "qwen_asr", "config.json", ("thinker_config", "text_config")),
    ):
        folder = shutil.copytree(source, tmp_path / source.name)
        told = values(folder / config)
        inner = told
        for name in part:
            inner = inner[name]
        inner["tie_word_embeddings"] = told["tie_word_embeddings"] = True
        (folder / config).write_text(json.dumps(told))
        assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 5
        assert "head of its own" in capfd.readouterr().err and not (tmp_path / "out").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("layout", ["hf", "qwen_asr"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_damaged_exports_are_refused_by_name(exported, tmp_path, layout, damage):
    folder = shutil.copytree(exported["tied"], tmp_path / "copy")
    check_export(folder)
    with pytest.raises(CheckpointError, match=f"one of the two folders of an export: give {folder}, to check both"):
        check_export(folder / layout)
    (folder / layout / "README.md").write_text("edited by hand")
    names = [line.split("  ")[1] for line in (folder / layout / "SHA256SUMS").read_text().splitlines()]
    assert {WEIGHTS, "config.json", "tokenizer_config.json", "generation_config.json"} <= set(names)
    for name in names:
        file = folder / layout / name
        before = file.read_bytes()
        damage(file)
        with pytest.raises(CheckpointError, match=rf"{layout}/{name}"):
            check_export(folder)
        file.write_bytes(before)
    check_export(folder)
    (folder / layout / "SHA256SUMS").unlink()
    assert main(["export", str(folder), "--check"]) == 5


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_list_of_hashes_that_lost_lines_is_refused(exported, tmp_path, kept):
    folder = shutil.copytree(exported["tied"], tmp_path / "copy")
    sums = folder / "hf" / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(CheckpointError, match="is not in SHA256SUMS"):
        check_export(folder)


def test_what_others_would_load_beside_an_export_is_refused_and_the_rest_may_lie_there(exported, tmp_path):
    folder = shutil.copytree(exported["tied"], tmp_path / "copy")
    (folder / "hf" / ".gitattributes").touch()
    (folder / "hf" / "picture.png").touch()
    check_export(folder)
    for name in ("model.safetensors.index.json", "adapter_config.json", "pytorch_model.bin", "modeling_qwen3_asr.py"):
        (folder / "qwen_asr" / name).touch()
        with pytest.raises(CheckpointError, match=rf"qwen_asr/{name} is not in SHA256SUMS"):
            check_export(folder)
        (folder / "qwen_asr" / name).unlink()


def test_folders_of_two_models_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported["tied"], tmp_path / "mixed")
    shutil.rmtree(folder / "qwen_asr")
    shutil.copytree(exported["untied"] / "qwen_asr", folder / "qwen_asr")
    with pytest.raises(CheckpointError, match="input embedding"):
        check_export(folder)


def test_what_is_in_the_way_stays(models, tmp_path, capfd):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["export", str(models["tied"]), "--out", str(out)]) == 2
    assert [path.name for path in out.iterdir()] == ["mine.txt"] and "--out" in capfd.readouterr().err
    assert main(["export", str(models["tied"])]) == 2
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 2
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.json").write_text("{}")
    capfd.readouterr()
    assert main(["export", str(unfinished), "--out", str(tmp_path / "new")]) == 5
    assert f"export one of {unfinished / 'checkpoints'}" in capfd.readouterr().err
    (unfinished / "recipe.json").unlink()
    assert main(["export", str(unfinished), "--out", str(tmp_path / "new")]) == 5
    assert f"{unfinished} has no config.json; give the folder of a Qwen3-ASR model" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(models, tmp_path, capfd):
    with small_disk(tmp_path / "disk", "300k") as disk:
        assert main(["export", str(models["tied"]), "--out", str(disk / "out")]) == 4
        assert not list(disk.iterdir())
    assert "No space left" in capfd.readouterr().err


def test_the_bases_tokenizer_files_are_copied_and_others_refused(models, exported, tmp_path, capfd):
    base = exported["tied"] / "qwen_asr"
    marked = shutil.copytree(base, tmp_path / "base")
    told = values(marked / "tokenizer_config.json") | {"model_max_length": 77}
    (marked / "tokenizer_config.json").write_text(json.dumps(told))
    out = tmp_path / "out"
    assert main(["export", str(models["tied"]), "--out", str(out), "--base", str(marked)]) == 0
    assert values(out / "qwen_asr" / "tokenizer_config.json")["model_max_length"] == 77
    vocabulary = values(marked / "vocab.json")
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (marked / "vocab.json").write_text(json.dumps(vocabulary))
    assert main(["export", str(models["tied"]), "--out", str(tmp_path / "no"), "--base", str(marked)]) == 5
    assert "other tokens" in capfd.readouterr().err and not (tmp_path / "no").exists()


def test_a_model_of_the_published_base_is_not_cut_after_20_tokens(exported, tmp_path):
    """The published thinker model's generation config names one end token and no length."""
    base = shutil.copytree(exported["tied"] / "qwen_asr", tmp_path / "base")
    end = load_tokenizer(str(base)).convert_tokens_to_ids("<|im_end|>")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "pad_token_id": end + 1}))
    save_native(tmp_path / "final", load_model(Model(str(base))), load_tokenizer(str(base)))
    written = values(tmp_path / "final" / "generation_config.json")
    assert written["max_new_tokens"] == 512 and len(written["eos_token_id"]) == 2


def test_precision_pieces_and_card(models, tmp_path):
    out, model, own = tmp_path / "out", shutil.copytree(models["tied"], tmp_path / "model"), Cutting(11.0, 2.5, 9.25)
    write_cutting(model, own)
    assert main(["export", str(model), "--out", str(out), "--dtype", "bfloat16", "--name", "mine"]) == 0
    for layout in ("hf", "qwen_asr"):
        assert cutting_of(out / layout) == own
        assert {tensor.dtype for tensor in load_file(out / layout / WEIGHTS).values()} == {torch.bfloat16}
        card = (out / layout / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlanguage: he\n") and "# mine" in card and "None are known" in card
        assert f'"{out / layout}"' in card
    assert values(out / "qwen_asr" / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("thinker", [False, True])
def test_the_card_s_programs_are_programs_whatever_the_folder_is_called(thinker):
    repo = 'my "best"\\model\'s\n{folder}/hf'
    card = model_card(None, name="x", repo=repo, step=None, thinker=thinker, dtype="bfloat16")
    programs = [ast.parse(part.partition("```")[0]) for part in card.split("```python\n")[1:]]
    for program in programs:
        assert repo in [node.value for node in ast.walk(program) if isinstance(node, ast.Constant)]
    assert len(programs) == 1 + thinker


def test_nothing_is_sent_before_it_is_asked_for(models, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["export", str(models["tied"]), "--out", str(out), "--push", "me/hebrew"]) == 0
    told = capfd.readouterr().out
    assert "me/hebrew-hf" in told and "  model.safetensors" in told
    assert re.search(r"would upload \d+ files, (?!0\.0)\d+\.\d MiB, to", told), "the size of a small model too"
    assert 'from_pretrained("me/hebrew"' in (out / "qwen_asr" / "README.md").read_text(encoding="utf-8")
    assert main(["export", str(out), "--check", "--push", "no repo"]) == 2
    capfd.readouterr()
    assert main(["export", str(models["tied"]), "--out", str(tmp_path / "second"), "--push", "foo"]) == 2
    assert capfd.readouterr().err == "error: --push foo: a hub repository is called owner/name\n"
    assert not (tmp_path / "second").exists(), "the name was looked at last"


def test_weights_beside_a_foreign_name_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported["tied"] / "qwen_asr", tmp_path / "foreign")
    held = load_file(folder / WEIGHTS) | {"talker.foo.weight": torch.zeros(2)}
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"talker\.foo\.weight"):
        load_model(Model(str(folder)))
