"""Upload a model folder to the Hugging Face hub, or tell what would be."""

from __future__ import annotations

import re
from pathlib import Path

from hebrew_asr.errors import EnvironmentProblem, UsageError, first_line
from hebrew_asr.units import gib

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def check_repo(repo: str) -> None:
    """Before any work.

    Raises:
        UsageError: ``repo`` is no hub id.
    """
    if _REPO.fullmatch(repo) is None:
        raise UsageError(f"--push {repo}: a hub repository is called owner/name")


def push(folder: Path, repo: str, *, really: bool) -> None:
    """Upload every file of ``folder`` in one commit, or print the list of them.

    Raises:
        EnvironmentProblem: the hub does not take it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = gib(sum(path.stat().st_size for path in files))
    if not really:
        print(f"would upload {len(files)} files, {size}, to {repo} (nothing was sent; --really sends them):")
        for path in files:
            print(f"  {path.relative_to(folder)}")
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model exported by hebrew_asr")
    except Exception as error:  # the hub client's transport errors share no public base class over its versions
        raise EnvironmentProblem(
            f"{repo} was not uploaded ({first_line(error)}); check HF_TOKEN, its right to write there, and the network"
        ) from error
    print(f"uploaded {len(files)} files, {size}: {commit}")
