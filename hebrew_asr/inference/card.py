"""The model card of an exported model: README.md of its folder, as the Hugging Face hub shows it.

It says what the run wrote down, with intervals and normalizers, and nothing else; where no run is at hand it says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hebrew_asr.pages.words import duration
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.text.normalize import NORMALIZER_VERSION
from hebrew_asr.text.scoring import SCORING_MODES, Transcript, figures

_QWEN = "Qwen/Qwen3-ASR-1.7B"
_MODES = {
    "ivrit": "that of the ivrit.ai leaderboard",
    "strict": "same words, whatever the punctuation or niqqud",
    "lenient": "strict, with numbers and a few spellings folded",
}
_USE_HF = """\
```python
# pip install "transformers>=5.13" torch soundfile
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

folder = "{repo}"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto")
samples, rate = soundfile.read("speech.wav", dtype="float32")  # mono, 16 kHz, 30 s at most
inputs = processor.apply_transcription_request(audio=[samples]).to(model.device, model.dtype)
tokens = model.generate(**inputs)
print(processor.decode(tokens[:, inputs["input_ids"].shape[1] :], return_format="transcription_only")[0])
```
"""
_USE_THINKER = """\
With [qwen-asr](https://pypi.org/project/qwen-asr/) 0.0.6:

```python
# pip install torch qwen-asr==0.0.6
import torch
from qwen_asr import Qwen3ASRModel
from qwen_asr.inference import utils

utils.SUPPORTED_LANGUAGES.append("Hebrew")  # else language="Hebrew" is refused; language=None lets the model say it
model = Qwen3ASRModel.from_pretrained("{repo}", dtype=torch.{dtype})
print(model.transcribe("speech.wav", language="Hebrew")[0].text)
```

With vLLM:

```python
# pip install "vllm[audio]"
import soundfile
from vllm import LLM, SamplingParams

PROMPT = (
    "<|im_start|>system\\n<|im_end|>\\n<|im_start|>user\\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\\n"
    "<|im_start|>assistant\\nlanguage Hebrew<asr_text>"
)

if __name__ == "__main__":  # vLLM may start processes that import this file
    model = LLM("{repo}", limit_mm_per_prompt={{"audio": 1}})
    sound = soundfile.read("speech.wav", dtype="float32")
    request = {{"prompt": PROMPT, "multi_modal_data": {{"audio": [sound]}}}}
    print(model.generate([request], SamplingParams(temperature=0.0, max_tokens=512))[0].outputs[0].text)
```
"""


def model_card(run: RunHistory | None, *, name: str, repo: str, step: int | None, thinker: bool, dtype: str) -> str:
    """Markdown with the hub's metadata in front.

    Args:
        run: that made the model; None where the model is known by itself alone.
        name: of the model.
        repo: hub id or folder that the snippets load.
        step: of the run that the weights are of; None for those of its ``final/``.
        thinker: of the folder in the thinker layout.
        dtype: of the weights, such as ``bfloat16``.
    """
    base = str((run.recipe.get("model") or {}).get("path") or "") if run else ""
    in_quotes = json.dumps(repo, ensure_ascii=False)[1:-1]  # a folder's name may hold quotes
    parts = [
        _metadata(base, thinker),
        f"# {name}",
        "Hebrew speech recognition: sound of up to 30 s in, text out. A Qwen3-ASR model, trained with hebrew_asr.",
        "This folder is in the original repository's layout, for qwen-asr and vLLM; transformers 5 does not load it."
        if thinker
        else "This folder is in the native layout of transformers 5.13 and later; qwen-asr does not load it.",
        "## Figures\n\n" + _figures(run, step),
        "## Use\n\n" + (_USE_THINKER if thinker else _USE_HF).format(repo=in_quotes, dtype=dtype),
        "## Training and data\n\n" + _training(run, base),
        "## License\n\n" + _license(base),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _is_qwens(base: str) -> bool:
    return base in (_QWEN, f"{_QWEN}-hf")


def _metadata(base: str, thinker: bool) -> str:
    lines = ["---", "language: he", "pipeline_tag: automatic-speech-recognition"]
    lines.append("library_name: qwen-asr" if thinker else "library_name: transformers")
    if _is_qwens(base):
        lines += [f"base_model: {_QWEN}", "license: apache-2.0"]
    return "\n".join([*lines, "---"])


def _figures(run: RunHistory | None, step: int | None) -> str:
    if run is None:
        return "None are known: the model was exported without the run that made it. `hebrew-asr eval` measures them."
    at = step if step is not None else run.last_step
    of_step = [record for record in run.evaluations if record.step == at]
    evaluated = [run.chosen] if run.chosen and step is None else of_step
    measured = [record for record in evaluated if run.samples.get(record.key)]
    if not measured:
        return f"The run measured none at step {at}, of which these weights are. `hebrew-asr eval` measures them."
    record = max(measured, key=lambda evaluation: evaluation.clips)
    heard = [
        Transcript(sample.id, sample.reference, sample.hypothesis, run.group_of(sample))
        for sample in run.samples[record.key]
    ]
    found = figures(heard)
    which = "a sample of the evaluation split" if record.split == "sample" else "the whole evaluation split"
    model = f"Step {at}" if step is not None else f"The run's final model, {run.final_title}"
    rows = [_row(mode, found["modes"][mode]) for mode in SCORING_MODES]
    return "\n".join(
        [
            f"{model}, of {run.planned_steps} steps; {record.clips} clips, {which}. Intervals: {found['interval']}. "
            f"Normalizers of version {NORMALIZER_VERSION}; rates in different ones cannot be compared.",
            "",
            "| normalizer | WER | interval | CER | WIL | substituted | deleted | inserted | words |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _row(mode: str, found: dict[str, Any]) -> str:
    counts = [found[key] for key in ("substitutions", "deletions", "insertions", "words")]
    cells = [
        f"`{mode}`: {_MODES[mode]}",
        f"{found['wer']:.2%}",
        f"{found['wer_low_95']:.2%} to {found['wer_high_95']:.2%}",
        f"{found['cer']:.2%}",
        f"{found['wil']:.2%}",
        *(f"{count:,}" for count in counts),
    ]
    return f"| {' | '.join(cells)} |"


def _training(run: RunHistory | None, base: str) -> str:
    if run is None:
        return "Not known here: the model was exported without the run that made it."
    lines = [f"- base model: {base or 'not written down'}"]
    facts, seen = run.facts, run.recipe.get("data") or {}
    if "train_clips" in facts:
        hours = f", {facts['train_hours']:,.1f} h" if "train_hours" in facts else ""
        lines.append(f"- training clips: {facts['train_clips']:,}{hours}; evaluation clips: {facts['eval_clips']:,}")
    if seen.get("folder"):
        lines.append(f"- data: `{Path(seen['folder']).name}`, as `hebrew-asr prepare` or its owner made it")
    for phase in run.recipe.get("phases") or ():
        lines.append(f"- phase {phase['name']}, {phase['epochs']} epochs: {', '.join(phase['learning_rates'])} trained")
    seconds = run.summary.get("seconds")
    if seconds:
        devices = ", ".join(dict.fromkeys(facts.get("devices") or ())) or "unknown devices"
        lines.append(
            f"- {run.summary.get('steps')} steps in {duration(seconds)} on {facts.get('num_ranks')} × {devices}"
        )
    return "\n".join(lines)


def _license(base: str) -> str:
    if _is_qwens(base):
        return (
            "Qwen3-ASR is under Apache-2.0, and so are these weights as far as they come from it. The corpora have "
            "licenses of their own, which say what may be done with a model trained on them."
        )
    return "That of the base model and of the data; neither is known to the program that wrote this card."
