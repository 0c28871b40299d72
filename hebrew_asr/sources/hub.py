"""Parquet shards of a dataset on the Hugging Face hub, pinned to one commit and downloaded when their turn comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from hebrew_asr.errors import DataError, EnvironmentProblem, first_line
from hebrew_asr.sources.parquet import parquet_units
from hebrew_asr.sources.rows import Source, Unit, is_held_out
from hebrew_asr.sources.walk import files_in

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
"""``owner/name``, with an optional ``:config`` (a folder of the repository) and ``@revision``."""

_NUMBERED = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<of>\d{5})\.parquet")

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
        return self._units

    @cached_property
    def _units(self) -> list[Unit]:
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
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # there is one bar already
    match = HUB_ID.fullmatch(spec)
    assert match is not None, spec
    repo, config = match["repo"], match["config"]
    revision = match["revision"] or pinned
    sha, found = _in_cache(repo, revision) if constants.HF_HUB_OFFLINE else _on_hub(repo, revision)
    files = sorted(
        (file, size)
        for file, size in found
        if file.endswith(".parquet") and (config is None or config in Path(file).parts)
    )
    if not files:
        what = f"no parquet files under {config!r}" if config else "no parquet files"
        raise DataError(f"source {spec}: {what} at {sha}. If it is a script dataset, try {repo}@refs/convert/parquet")
    name = repo.split("/")[1]
    shards = tuple(
        HubShard(name, index, repo, sha, file, size, held_out or is_held_out(file))
        for index, (file, size) in enumerate(files)
    )
    if constants.HF_HUB_OFFLINE:
        _require_whole(spec, [file for file, _ in files])
        return Source(
            name, sha, shards, (f"offline: the {len(files)} parquet files of the cache are taken for all of it",)
        )
    return Source(name, sha, shards)


def _on_hub(repo: str, revision: str | None) -> tuple[str, list[tuple[str, int]]]:
    """Commit of a dataset, and its files with their sizes in bytes."""
    from huggingface_hub import HfApi

    info = _explained(repo, lambda: HfApi().dataset_info(repo, revision=revision, files_metadata=True))
    if info.sha is None:
        raise DataError(f"source {repo}: the hub names no commit")
    return info.sha, [(file.rfilename, file.size or 0) for file in info.siblings or []]


def _in_cache(repo: str, revision: str | None) -> tuple[str, list[tuple[str, int]]]:
    """The same of what is in the hub's cache, for HF_HUB_OFFLINE=1; the cache does not say whether that is all.

    Files that were fetched by their commit leave no record of the branch: then the newest snapshot is taken.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"
    branch = cache / "refs" / (revision or "main")
    commit = branch.read_text().strip() if branch.is_file() else revision
    folder = cache / "snapshots" / (commit or "")
    if commit is None:
        kept = sorted(cache.glob("snapshots/*"), key=lambda path: path.stat().st_mtime_ns)
        folder = kept[-1] if kept else cache / "none"
    if not folder.is_dir():
        at = f" at {revision}" if revision else ""
        raise EnvironmentProblem(
            f"source {repo}: HF_HUB_OFFLINE is set and the cache does not hold it{at}. Unset that to fetch it"
        )
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_in(folder)]
    return folder.name, files


def _require_whole(spec: str, files: list[str]) -> None:
    """Raise EnvironmentProblem where files number themselves, and some of the numbers are not there."""
    sets: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, files)):
        sets.setdefault((match["name"], int(match["of"])), set()).add(int(match["index"]))
    missing = [
        f"{name}-{index:05d}-of-{of:05d}.parquet"
        for (name, of), has in sets.items()
        for index in range(of)
        if index not in has
    ]
    if missing:
        raise EnvironmentProblem(
            f"source {spec}: HF_HUB_OFFLINE is set and the cache lacks {len(missing)} of its files, such as "
            f"{missing[0]}. Unset that to fetch them"
        )


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
        f"source {repo}: cannot reach the Hugging Face hub ({first_line(error)}). Check the network, or prepare "
        f"a local folder with the parquet shards of this dataset"
    )
