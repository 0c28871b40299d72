"""Loading: both layouts give the same bits; anything missing, unexpected or misshapen is named, never drawn."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hebrew_asr.config.recipe import Model, load_recipe
from hebrew_asr.errors import CheckpointError, EnvironmentProblem, UsageError
from hebrew_asr.inference.export import save_native
from hebrew_asr.model.folder import read_config
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.phases import check_phases, set_phase
from tests.support.tiny_task import SPEC, WORDS

NATIVE_TO_THINKER = {
    "model.multi_modal_projector.linear_1.": "thinker.audio_tower.proj1.",
    "model.multi_modal_projector.linear_2.": "thinker.audio_tower.proj2.",
    "model.audio_tower.": "thinker.audio_tower.",
    "model.language_model.": "thinker.model.",
}
NUM_WEIGHTS_1_7B = 2_038_052_480
# Sizes of Qwen/Qwen3-ASR-1.7B's public config.json, in its own nested form.
CONFIG_1_7B = {
    "model_type": "qwen3_asr",
    "thinker_config": {
        "audio_token_id": 151676,
        "audio_config": {
            "d_model": 1024,
            "encoder_layers": 24,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "num_mel_bins": 128,
            "n_window": 50,
            "n_window_infer": 800,
            "downsample_hidden_size": 480,
            "output_dim": 2048,
        },
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_theta": 1000000,
        },
    },
}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    from hebrew_asr.demo.tiny import save_tiny

    folder = tmp_path_factory.mktemp("native")
    save_tiny(folder, SPEC, [" ".join(WORDS)], 0)
    return folder


@pytest.fixture
def thinker(native, tmp_path):
    """The same model as the original repository would publish it: other names, a stored head, a nested config."""
    folder = tmp_path / "thinker"
    shutil.copytree(native, folder)
    weights = {}
    for name, tensor in load_file(native / "model.safetensors").items():
        for old, new in NATIVE_TO_THINKER.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = tensor
                break
        else:
            raise AssertionError(f"no thinker name for {name}")
    weights["thinker.lm_head.weight"] = weights["thinker.model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((native / "config.json").read_text())
    text = config["text_config"] | {"rope_theta": 1e6, "tie_word_embeddings": True}
    nested = {"audio_token_id": config["audio_token_id"], "audio_config": config["audio_config"], "text_config": text}
    values = {"model_type": "qwen3_asr", "thinker_config": nested, "pad_token_id": config["pad_token_id"]}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def state(asr):
    return dict(asr.named_parameters())


def test_both_layouts_load_bit_equal(native, thinker):
    one, other = state(load_model(Model(str(native)))), state(load_model(Model(str(thinker))))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_loaded_from_thinker_is_saved_native(thinker, tmp_path):
    save_native(tmp_path / "out", load_model(Model(str(thinker))), load_tokenizer(str(thinker)))
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in names if name.startswith("thinker")]
    again = state(load_model(Model(str(tmp_path / "out"))))
    assert all(torch.equal(again[name], tensor) for name, tensor in state(load_model(Model(str(thinker)))).items())
    assert (
        load_tokenizer(str(tmp_path / "out"))("שלום")["input_ids"] == load_tokenizer(str(thinker))("שלום")["input_ids"]
    )


def test_what_was_put_beside_a_model_stays_beside_it(native, tmp_path):
    asr, tokenizer, folder = load_model(Model(str(native))), load_tokenizer(str(native)), tmp_path / "final"
    save_native(folder, asr, tokenizer)
    (folder / "notes").mkdir()
    (folder / "notes" / "heard.txt").write_text("mine")
    (folder / "README.md").write_text("mine")
    (folder / "config.json").write_text("{}")
    for _ in range(2):
        save_native(folder, asr, tokenizer)
        folder.rename(tmp_path / ".old-final")  # as a kill leaves it, between two renames
        (tmp_path / ".old-final" / "more.txt").write_text("mine")
    save_native(folder, asr, tokenizer)
    kept = [folder / name for name in ("notes/heard.txt", "README.md", "more.txt")]
    assert [path.read_text() for path in kept] == ["mine"] * 3 and load_model(Model(str(folder)))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda w: w.pop("model.language_model.norm.weight"), r"1 missing \(model\.language_model\.norm\.weight\)"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(1)}), r"1 unexpected \(model\.extra\.weight\)"),
        (lambda w: w.update({"model.language_model.norm.weight": torch.zeros(3)}), "1 of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_named(native, tmp_path, damage, told):
    folder = tmp_path / "bad"
    shutil.copytree(native, folder)
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=told):
        load_model(Model(str(folder)))


def test_folders_that_are_no_model(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(Model(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="'whisper' model"):
        load_model(Model(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_1_7B))
    with pytest.raises(CheckpointError, match="other formats are not read"):
        load_model(Model(str(tmp_path)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentProblem, match="not a local folder"):
        load_model(Model("owner/name"))
    for name in (str(tmp_path / "nowhere"), "nowhere"):
        with pytest.raises(UsageError, match="no such folder, and a model of the hub is called owner/name"):
            load_model(Model(name))


def test_full_size_counts_of_the_design(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_1_7B))
    config, is_thinker = read_config(tmp_path)
    assert is_thinker
    assert config.tie_word_embeddings
    with torch.device("meta"):
        asr = load_model(Model(str(tmp_path), random_weights=True))
    assert sum(parameter.numel() for parameter in asr.parameters()) == NUM_WEIGHTS_1_7B
    counts = check_phases(asr, load_recipe("round2"))
    assert counts["B"] == {"projector": 3_150_848, "llm_top": 604_034_048, "head": 311_164_928}
    assert counts["A"] == counts["B"] | {"audio_top": 100_769_792}


def test_phase_groups_are_stable_and_complete(native):
    recipe = load_recipe("round2", ['unfrozen_layers={"llm_top": 2, "audio_top": 2}'])
    asr = load_model(Model(str(native)))
    first, second = (set_phase(asr, recipe, phase) for phase in recipe.phases)
    assert [group.name for group in second][: len(first)] == [group.name for group in first]
    assert all(list(a.parameters) == list(b.parameters) for a, b in zip(first, second, strict=False))
    listed = [id(p) for group in second for p in group.parameters.values()]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in asr.parameters() if p.requires_grad}
    assert asr.lm_head.weight is asr.model.language_model.embed_tokens.weight
    assert asr.lm_head.weight.requires_grad
    flat = {name: group.decays for group in second for name in group.parameters}
    assert not any(decays for name, decays in flat.items() if name.endswith("bias") or "norm" in name)


def test_unknown_group_and_too_many_layers(native):
    asr = load_model(Model(str(native)))
    for changes, told in (
        (
            [f'phases.{phase}.learning_rates={{"encoder": 1e-4}}' for phase in (0, 1)],
            "learning_rates.encoder .there is audio_stem",
        ),
        (['unfrozen_layers={"llm_top": 40, "audio_top": 2}'], "llm_top wants 40 layers, the model has 3"),
        (['unfrozen_layers={"audio_top": 2}'], "does not say how many layers llm_top"),
    ):
        with pytest.raises(UsageError, match=told):
            check_phases(asr, load_recipe("round2", changes))
