"""Parquet shards of a dataset on the Hugging Face hub, pinned to one commit and downloaded when their turn comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hebrew_asr.errors import DataError, EnvironmentProblem, first_line
from hebrew_asr.sources.parquet import parquet_units
from hebrew_asr.sources.rows import Source, Unit, is_held_out

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
"""``owner/name``, with an optional ``:config`` (a folder of the repository) and ``@revision``."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class HubShard:
    """One parquet file of a hub dataset at a fixed commit."""

    dataset: str
    index: int
    repo: str
    revision: str
    name: str
    size_bytes: int
    held_out: bool

    @property
    def bytes_to_download(self) -> int:
        """0 once the file is in the hub's cache folder."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, self.name, revision=self.revision, repo_type="dataset")
        return 0 if isinstance(cached, str) else self.size_bytes

    def units(self) -> list[Unit]:
        """Download the file into the hub's cache and cut it into units."""
        from huggingface_hub import hf_hub_download

        path = _explained(
            self.repo, lambda: hf_hub_download(self.repo, self.name, revision=self.revision, repo_type="dataset")
        )
        return parquet_units(self.dataset, self.index, Path(path), self.held_out)


def open_hub(spec: str, *, held_out: bool, pinned: str | None = None) -> Source:
    """Resolve ``owner/name[:config][@revision]`` to its commit and its parquet files, in order of their names.

    Args:
        held_out: treat every shard as test data.
        pinned: the commit that an interrupted run had resolved; used when ``spec`` names no revision.

    Raises:
        DataError: no such dataset, or it holds no parquet files.
        EnvironmentProblem: the hub cannot be reached, or wants its conditions accepted or a token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # there is one bar already
    match = HUB_ID.fullmatch(spec)
    assert match is not None, spec
    repo, config = match["repo"], match["config"]
    info = _explained(
        repo, lambda: HfApi().dataset_info(repo, revision=match["revision"] or pinned, files_metadata=True)
    )
    files = sorted(
        (file.rfilename, file.size or 0)
        for file in info.siblings or []
        if file.rfilename.endswith(".parquet") and (config is None or config in Path(file.rfilename).parts)
    )
    if not files or info.sha is None:
        what = f"no parquet files under {config!r}" if config else "no parquet files"
        raise DataError(
            f"source {spec}: {what} at {info.sha}. If it is a script dataset, try {repo}@refs/convert/parquet"
        )
    name = repo.split("/")[1]
    shards = tuple(
        HubShard(name, index, repo, info.sha, file, size, held_out or is_held_out(file))
        for index, (file, size) in enumerate(files)
    )
    return Source(name, info.sha, shards)


def _explained(repo: str, call: Callable[[], _Result]) -> _Result:
    """Make the hub's failures say which page to visit and which variable to set."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{repo}"
    try:
        return call()
    except errors.GatedRepoError as error:
        raise EnvironmentProblem(
            f"source {repo} is gated: accept its conditions on {page} and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"source {repo}: no such revision; see {page}/commits") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"source {repo}: no such folder here, and not on the hub, or private. If {page} opens in your browser, set "
            "HF_TOKEN"
        ) from error
    except OSError as error:
        if error.filename is not None:  # a local file, such as a full disk
            raise
        raise _unreachable(repo, error) from error
    except Exception as error:  # the hub client's transport errors share no public base class over its versions
        raise _unreachable(repo, error) from error


def _unreachable(repo: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"source {repo}: cannot reach the Hugging Face hub ({first_line(error)}). Check the network, or give --source "
        f"a local folder with the parquet shards of this dataset"
    )
