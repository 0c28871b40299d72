"""``hebrew-asr export``: a trained model as folders that other programs load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from hebrew_asr.config.options import Out

if TYPE_CHECKING:
    from hebrew_asr.inference.pieces import Cutting
    from hebrew_asr.report.gather import RunHistory


@dataclass
class Command:
    """Write a model as two folders and check that they load to the same bits and tokens.

    OUT/hf is for transformers 5.13 and later, OUT/qwen_asr for qwen-asr, vLLM and whatever reads the original layout.

    $ hebrew-asr export runs/round2 --out hebrew-model
    """

    IDLE: ClassVar = ("out with check", "dtype with check", "base with check", "name with check", "really without push")
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|CHECKPOINT|MODEL")]
    """Run directory (its final/ is taken), one of its checkpoints, or folder or hub id of a model in either layout."""
    out: Out[Path | None] = None
    """Folder to make; it must not exist, or be empty. Needed unless --check is given."""
    dtype: Literal["same", "bfloat16", "float16", "float32"] = "same"
    """Precision of the weights: that of the model, or another."""
    base: Path | None = None
    """Folder of the base model in the original layout, whose tokenizer files are copied. Unless given it is looked for
    where the run says; where there is none, the same tokenizer is written in the same form."""
    name: str = ""
    """Name of the model on its card; unless given, that of the run or the folder."""
    check: bool = False
    """Write nothing: check the export that lies in the folder, file by file."""
    push: str | None = None
    """Hub repository, owner/name: tell what would be uploaded, qwen_asr/ to owner/name and hf/ to owner/name-hf."""
    really: bool = False
    """With --push: upload it, into private repositories where there are none yet."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import refuse_if_taken
        from hebrew_asr.errors import UsageError
        from hebrew_asr.inference.hub import check_repo

        if self.push is not None:
            check_repo(self.push)
        if self.check:
            from hebrew_asr.inference.published import check_export

            check_export(Path(self.model))
            print(f"{self.model}: every file is as it was written, and both folders load to the same model")
            if self.push:
                self._push(Path(self.model))
            return 0
        if self.out is None:
            raise UsageError("give --out, the folder to make; or --check, to check an export that lies there")
        refuse_if_taken(self.out)  # told before the model is loaded
        self._export(self.out)
        if self.push:
            self._push(self.out)
        return 0

    def _export(self, out: Path) -> None:
        from hebrew_asr.inference.card import model_card
        from hebrew_asr.inference.published import HF, THINKER, export

        source = self._source()
        asr, run = source.asr, source.run
        if self.dtype != "same":
            import torch

            asr = asr.to(getattr(torch, self.dtype))
        dtype = str(asr.dtype).removeprefix("torch.")
        name = self.name or (run.name if run else Path(self.model).resolve().name)
        cards = {
            folder: model_card(run, name=name, repo=repo, step=source.step, thinker=folder == THINKER, dtype=dtype)
            for folder, repo in self._repos(out).items()
        }
        base = self._base(run)
        export(out, asr, source.tokenizer, source.cutting, cards, base)
        print(f"{out / HF}: for transformers; {out / THINKER}: for qwen-asr and vLLM; {dtype}, loaded again and equal")

    def _source(self) -> _Source:
        from hebrew_asr.checkpoints.models import model_of
        from hebrew_asr.checkpoints.sealed import SEAL, find_checkpoints
        from hebrew_asr.config.recipe import Model
        from hebrew_asr.errors import CheckpointError
        from hebrew_asr.inference.load import cutting_of, cutting_of_run, model_folder
        from hebrew_asr.inference.published import stored_dtype
        from hebrew_asr.model.load import load_model, load_tokenizer, local_folder
        from hebrew_asr.report.gather import read_run

        path = Path(self.model)
        if (path / SEAL).exists():
            run_folder = path.resolve().parent.parent
            checkpoint = next((c for c in find_checkpoints(path.resolve().parent) if c.path.samefile(path)), None)
            if checkpoint is None:
                raise CheckpointError(f"{path} is a checkpoint that cannot be read; export another one of its run")
            asr, tokenizer = model_of(run_folder, [checkpoint])
            run = read_run(run_folder) if (run_folder / "metrics.jsonl").is_file() else None
            return _Source(asr, tokenizer, cutting_of_run(run_folder), run, checkpoint.step)
        folder = local_folder(model_folder(self.model))
        run_folder = folder.parent if folder.name == "final" and (folder.parent / "metrics.jsonl").is_file() else None
        tokenizer = load_tokenizer(str(folder))  # first, as it tells a folder that is no model
        asr = load_model(Model(str(folder)), dtype=stored_dtype(folder))
        run = read_run(run_folder) if run_folder else None
        return _Source(asr, tokenizer, cutting_of(folder), run, None)

    def _base(self, run: RunHistory | None) -> Path | None:
        from hebrew_asr.errors import UsageError
        from hebrew_asr.inference.thinker import has_tokenizer_files

        if self.base is not None:
            if not has_tokenizer_files(self.base):
                raise UsageError(f"--base {self.base} holds no vocab.json, merges.txt and tokenizer_config.json")
            return self.base
        base = str((run.recipe.get("model") or {}).get("path") or "") if run else self.model
        return _folder_at_hand(base) if base else None

    def _repos(self, out: Path) -> dict[str, str]:
        """Where each folder is found by those who use it: on the hub if it goes there, else on this machine."""
        from hebrew_asr.inference.published import HF, THINKER

        if self.push:
            return {HF: f"{self.push}-hf", THINKER: self.push}
        return {name: str(out / name) for name in (HF, THINKER)}

    def _push(self, out: Path) -> None:
        from hebrew_asr.inference.hub import push

        for folder, repo in self._repos(out).items():
            push(out / folder, repo, really=self.really)


@dataclass(frozen=True)
class _Source:
    """What is exported."""

    asr: Any
    tokenizer: Any
    cutting: Cutting
    run: RunHistory | None
    """That the model is of."""
    step: int | None
    """Of the model, if it is not the run's final one."""


def _folder_at_hand(model: str) -> Path | None:
    """A model's folder, or its snapshot in the hub's cache, if it holds tokenizer files to copy; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from hebrew_asr.inference.thinker import has_tokenizer_files

    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(model, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    return folder if has_tokenizer_files(folder) else None
