"""The same work by the usual means: Hugging Face's Trainer on the native model, every clip padded to the longest.

``baseline.py RECIPE_JSON OUT_JSON STEPS MICRO_BATCH…``, in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from transformers import Qwen3ASRFeatureExtractor, Trainer, TrainerCallback, TrainingArguments

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode
from hebrew_asr.audio.frames import num_audio_tokens, num_frames
from hebrew_asr.config.recipe import Recipe, load_recipe
from hebrew_asr.data.collate import IGNORED
from hebrew_asr.data.manifest import Clip, read_manifest
from hebrew_asr.files import write_json
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.phases import set_phase
from hebrew_asr.text.prompt import PromptTokens, target_ids
from hebrew_asr.units import GIB


class PaddedCollator:
    """Clips to a right-padded batch of the native model; labels are masked by position."""

    def __init__(self, tokenizer: Any, dtype: torch.dtype):
        """``dtype``: of the features."""
        self._tokenizer, self._prompt, self._dtype = tokenizer, PromptTokens.of(tokenizer), dtype
        self._extract = Qwen3ASRFeatureExtractor()

    def __call__(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        """Decode, extract and pad."""
        sounds = [decode(clip.sound) for clip in clips]
        features = self._extract(
            sounds, sampling_rate=SAMPLE_RATE_HZ, padding="longest", return_attention_mask=True, return_tensors="pt"
        )
        mask = features["attention_mask"]
        for row, sound in enumerate(sounds):  # the extractor counts frames differently in a batch
            mask[row] = torch.arange(mask.shape[1]) < num_frames(len(sound))
        prompts = [self._prompt.prompt(num_audio_tokens(int(count))) for count in mask.sum(-1)]
        targets = [target_ids(self._tokenizer, clip.text) for clip in clips]
        longest = max(len(before) + len(after) for before, after in zip(prompts, targets, strict=True))
        ids = torch.full((len(clips), longest), self._tokenizer.pad_token_id)
        labels, attended = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, (before, after) in enumerate(zip(prompts, targets, strict=True)):
            ids[row, : len(before) + len(after)] = torch.tensor(before + after)
            labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
            attended[row, : len(before) + len(after)] = 1
        return {
            "input_ids": ids,
            "attention_mask": attended,
            "labels": labels,
            "input_features": features["input_features"].to(self._dtype),
            "input_features_mask": mask,
        }


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(recipe: Recipe, out: Path, steps: int, micro_batches: list[int]) -> None:
    """Write clips per second of the first phase at each micro-batch, after a warm-up step; None where it does not fit.

    Args:
        recipe: of the run that is measured.
        out: JSON file, written again after each micro-batch.
        steps: timed ones.
        micro_batches: clips in a micro-batch, smallest first.
    """
    on_cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_cuda else torch.float32
    with torch.device("cuda" if on_cuda and recipe.model.random_weights else "cpu"):
        model = load_model(recipe.model, seed=recipe.seed, dtype=dtype)
    set_phase(model, recipe, recipe.phases[0])
    collator = PaddedCollator(load_tokenizer(recipe.model.path), dtype)
    clips: Any = read_manifest(Path(recipe.data.folder) / "train.jsonl")  # a list does for a Dataset
    found = []
    for micro_batch in micro_batches:
        torch.cuda.reset_peak_memory_stats() if on_cuda else None
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=micro_batch,
                    gradient_accumulation_steps=-(-recipe.clips_per_step // micro_batch),
                    max_steps=1 + steps,
                    bf16=on_cuda,
                    use_cpu=not on_cuda,
                    optim="adamw_torch_fused",
                    report_to="none",
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    remove_unused_columns=False,
                    dataloader_num_workers=recipe.data.workers,
                ),
                data_collator=collator,
                train_dataset=clips,
                callbacks=[clock],
            )
            result: dict[str, Any] = {"micro_batch": micro_batch}
            try:
                trainer.train()
            except torch.OutOfMemoryError:
                found.append({**result, "clips_per_s": None})
                write_json(out, found)
                break
        trained = micro_batch * trainer.args.gradient_accumulation_steps * steps
        result["clips_per_s"] = trained / (clock.ends[-1] - clock.ends[0])
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIB if on_cuda else 0.0
        found.append(result)
        write_json(out, found)
        del trainer


if __name__ == "__main__":
    measure(load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), [int(size) for size in sys.argv[4:]])
