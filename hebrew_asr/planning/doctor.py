"""What this machine has for a run, and what it lacks: each check is ok, a warning or a failure with its remedy.

A check changes nothing, but for a nameless file of 64 MiB that it writes on the disk of the run directory.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil

from hebrew_asr.checkpoints.disk_space import DiskNeed
from hebrew_asr.config.profiles import Profile, load_profile
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.cores import usable_cores
from hebrew_asr.corpus.preparation.options import RECIPE_SOURCES
from hebrew_asr.data.manifest import has_manifest
from hebrew_asr.errors import EnvironmentProblem, HebrewASRError, UsageError, first_line
from hebrew_asr.files import nearest_existing
from hebrew_asr.launching.place import collective_timeout_s
from hebrew_asr.model.sizes import sizes_at
from hebrew_asr.planning.all_reduce import reduction
from hebrew_asr.planning.cards import Card, profile_for, visible_cards
from hebrew_asr.planning.doctor_access import Outcome, State, clock, repository, wandb_login
from hebrew_asr.planning.plan import written
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.remote.paths import is_url
from hebrew_asr.units import GIB, count, gib

_ANSWER_S = 6.0
"""Seconds that all that is asked of the network gets together."""
_PROBE_BYTES = 64 << 20
_LAUNCHER_PATIENCE_S = 30.0
_LEAST_SHM = GIB
_BF16_BYTES = 2
_OF_A_LARGE_RUN = {"disk space", "host memory"}
"""What the demo and the tests do not need as much of as the recipe says."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    state: State
    says: str
    fix: str = ""
    """What to do; empty if nothing is to be done."""


def examine(recipe: Recipe, profile: Profile | None, folder: Path) -> tuple[list[Finding], str | None]:
    """Look at everything; returns what was found, in order, and the shipped profile to use on these GPUs.

    Args:
        recipe: says which model and data are needed, and how much is written.
        profile: that the run is meant to use; the one that fits these GPUs best unless given.
        folder: the run directory, which need not exist.
    """
    asked = _Asked(recipe)  # the network answers while this process looks at the machine
    cards = visible_cards()
    best = profile_for(cards)
    profile = profile or load_profile(best or "cpu")
    ranks = len(cards) if profile.hardware.accelerator == "cuda" and cards else profile.hardware.num_ranks
    need = _need(recipe)
    checks: dict[str, Callable[[], Outcome]] = {
        "driver": partial(_driver, profile),
        "GPUs": partial(_gpus, profile, cards, best),
        "NVLink": partial(_nvlink, cards),
        "all-reduce": partial(reduction, len(cards), need, profile),
        "time-out": _time_out,
        "disk space": partial(_disk_space, need, folder),
        "disk speed": partial(_disk_speed, need, folder),
        "cores": partial(_cores, recipe, ranks),
        "host memory": partial(_host_memory, need, profile),
        "/dev/shm": partial(_shared_memory, recipe),
        "compilers": partial(_compilers, profile),
        "port": _port,
    }
    found = [Finding(name, *_outcome_of(check)) for name, check in checks.items()]
    if profile.hardware.accelerator == "cpu":
        found = [replace(at, state="warn") if at.name in _OF_A_LARGE_RUN and at.state == "fail" else at for at in found]
    return [*found, *asked.findings()], best


def _outcome_of(check: Callable[[], Outcome]) -> Outcome:
    """What a check says; one that cannot look is a warning, since the run may do well."""
    try:
        return check()
    except Exception as error:
        return "warn", f"could not be looked at ({type(error).__name__}: {first_line(error)})", ""


def _set_elsewhere(url: str) -> Outcome:
    try:
        set_folder(url)
    except HebrewASRError as error:
        return "fail", first_line(error), "training reads the set from there"
    return "ok", f"{url} is prepared", ""


class _Asked:
    """Questions to the network, each in a thread of its own, since a library may hang in one."""

    def __init__(self, recipe: Recipe):
        self._deadline = time.monotonic() + _ANSWER_S
        questions: dict[str, Callable[[], Outcome]] = {}
        if not Path(recipe.model.path).is_dir():
            questions[f"model {recipe.model.path}"] = partial(repository, recipe.model.path, "model")
        if is_url(recipe.data.folder):
            questions["data"] = partial(_set_elsewhere, recipe.data.folder)
        elif has_manifest(Path(recipe.data.folder) / "train.jsonl"):
            questions["data"] = lambda: ("ok", f"{recipe.data.folder} is prepared", "")
        else:
            questions |= {f"corpus {name}": partial(repository, name, "dataset") for name in RECIPE_SOURCES}
        questions["clock"] = clock
        questions["wandb"] = partial(wandb_login, wanted=recipe.logging.wandb)
        self._answers: dict[str, Outcome] = {}
        self._threads = {}
        for name, question in questions.items():
            thread = threading.Thread(target=self._answer, args=(name, question), daemon=True)
            thread.start()
            self._threads[name] = thread

    def _answer(self, name: str, question: Callable[[], Outcome]) -> None:
        self._answers[name] = _outcome_of(question)

    def findings(self) -> list[Finding]:
        """What was answered in time."""
        for thread in self._threads.values():
            thread.join(max(0.0, self._deadline - time.monotonic()))
        late: Outcome = ("warn", f"no answer in {_ANSWER_S:g} s", "check the network")
        return [Finding(name, *self._answers.get(name, late)) for name in self._threads]


def _need(recipe: Recipe) -> DiskNeed | None:
    """What the run will write; None where the sizes of the model are not known."""
    try:
        return written(recipe, sizes_at(recipe.model.path), _BF16_BYTES)
    except UsageError:
        return None


def _nvidia_smi(*arguments: str) -> str | None:
    """What nvidia-smi prints; None where there is none, or it fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=5, check=False)
    return done.stdout if done.returncode == 0 else None


def _cuda_of_torch() -> str | None:
    """``torch.version.cuda``, without the seconds that it takes to load torch."""
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None, "torch is a dependency"
    return runpy.run_path(str(Path(torch.origin).with_name("version.py")))["cuda"]


def _driver(profile: Profile) -> Outcome:
    if profile.hardware.accelerator != "cuda":
        return "ok", "not needed without GPUs", ""
    built = _cuda_of_torch()
    if built is None:
        return "fail", "this torch is built without CUDA", "install the wheels of requirements.lock"
    text = _nvidia_smi()
    if text is None:
        return (
            "fail",
            "nvidia-smi is missing or fails",
            "install the NVIDIA driver, or start the container with --gpus all",
        )
    match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", text)
    if match is None:
        return "warn", "nvidia-smi does not say which CUDA the driver takes", f"torch needs CUDA {built}"
    newest = f"{match[1]}.{match[2]}"
    if int(match[1]) < int(built.split(".")[0]):
        return (
            "fail",
            f"the driver takes CUDA up to {newest} and torch is built for {built}",
            "update the NVIDIA driver",
        )
    return "ok", f"the driver takes CUDA up to {newest}, torch is built for {built}", ""


def _gpus(profile: Profile, cards: list[Card], best: str | None) -> Outcome:
    if profile.hardware.accelerator != "cuda":
        return (
            ("ok", f"profile {profile.name} uses no GPU", "")
            if cards
            else (
                "warn",
                "none: this machine can run the demo and the tests, not train the real model",
                "launch/demo; or rent GPUs: hebrew-asr plan --ds a100x8",
            )
        )
    if not cards:
        return "fail", f"none, and profile {profile.name} is for GPUs", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    names = ", ".join(f"{card.name} ({card.memory_gib:.1f} GiB)" for card in cards)
    if any(card.capability < (8, 0) for card in cards):
        return "fail", f"{names}: no bf16 below compute capability 8.0", "take Ampere or newer: A100, A10G, L4, H100"
    if len({(card.name, round(card.memory_gib)) for card in cards}) > 1:
        return "warn", f"{names}: every step waits for the slowest", "choose equal ones by CUDA_VISIBLE_DEVICES"
    if best is None:
        return "fail", f"{names}: no shipped profile fits", "take cards of 24 GB or more"
    least = min(card.memory_gib for card in cards)
    if least < 0.95 * profile.hardware.memory_gib:
        fix = (
            f"hebrew-asr plan --ds {profile.name} --num-gpus {len(cards)} --memory-gib {least:.0f} says whether it fits"
        )
        return "warn", f"{names}; profile {profile.name} is for {profile.hardware.memory_gib:g} GiB", fix
    return "ok", names, ""


def _nvlink(cards: list[Card]) -> Outcome:
    if len(cards) < 2:
        return "ok", "not needed for fewer than two GPUs", ""
    topology = _nvidia_smi("topo", "-m")
    if topology is None:
        return "warn", "nvidia-smi topo -m says nothing", ""
    if re.search(r"\bNV\d+\b", topology):
        return "ok", "GPUs are linked by NVLink", ""
    return "warn", "GPUs talk over PCIe: gradients take longer to reduce", "nothing, if the price is right"


def _time_out() -> Outcome:
    try:
        seconds = collective_timeout_s()
    except EnvironmentProblem as error:
        return "fail", str(error), "unset it, or give seconds"
    return "ok", f"ranks wait {seconds:,.0f} s for each other", ""


def _disk_space(need: DiskNeed | None, folder: Path) -> Outcome:
    free = shutil.disk_usage(nearest_existing(folder)).free
    if need is None:
        return "warn", f"{gib(free)} free for {folder}; the sizes of this model are not known", ""
    least, fix = need.checkpoint + need.model, "make room, or give --run a folder on another disk"
    says = f"{gib(free)} free for {folder}; the run takes {gib(need.total)}, at the least {gib(least)}"
    return ("fail", says, fix) if free < least else ("warn", says, fix) if free < need.total else ("ok", says, "")


def _disk_speed(need: DiskNeed | None, folder: Path) -> Outcome:
    place = nearest_existing(folder)
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            begin = time.perf_counter()
            for _ in range(_PROBE_BYTES >> 20):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
            rate = _PROBE_BYTES / (time.perf_counter() - begin)
    except OSError as error:
        return "fail", f"{place} cannot be written: {error.strerror}", "give --run a folder that can"
    says = f"{rate / 1e6:,.0f} MB/s in {place}"
    if need is None:
        return "ok", says, ""
    seconds = need.checkpoint / rate
    says += f"; a checkpoint takes {seconds:,.0f} s"
    if seconds > _LAUNCHER_PATIENCE_S:
        fix = "start by hebrew-asr train, which waits for a stop to be saved; deepspeed kills the ranks after 30 s"
        return "warn", says, fix
    return "ok", says, ""


def _cores(recipe: Recipe, ranks: int) -> Outcome:
    workers = recipe.data.workers
    have, wanted = len(usable_cores()), ranks * (workers + 1)
    says = f"{have} for {count(ranks, 'rank')} with {count(workers, 'worker')} each"
    if have >= wanted:
        return "ok", says, ""
    fewer = max(0, have // ranks - 1)
    return "warn", f"{says}: GPUs may wait for data", f"--set data.workers={fewer}, or a machine with {wanted} cores"


def _host_memory(need: DiskNeed | None, profile: Profile) -> Outcome:
    free = min(psutil.virtual_memory().available, _cgroup_limit())
    if need is None:
        return "warn", f"{gib(free)} free; the sizes of this model are not known", ""
    wanted = need.checkpoint * (2 if profile.offloads_optimizer else 1)
    says = f"{gib(free)} usable; checkpoints are written from {gib(wanted)} of it, which GPUs need page-locked"
    if free < wanted:
        return "fail", says, "take a machine, or a container limit, with more memory"
    return "ok", says, ""


def _cgroup_limit() -> int:
    """Bytes that this container may use; a very large number without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 1 << 62


def _shared_memory(recipe: Recipe) -> Outcome:
    place = Path("/dev/shm")
    if not place.is_dir() or recipe.data.workers == 0:
        return "ok", "not used", ""
    size = shutil.disk_usage(place).total
    if size < _LEAST_SHM:
        return "warn", f"{gib(size)}: workers hand batches over in it", "docker run --shm-size=8g, or --ipc=host"
    return "ok", gib(size), ""


def _compilers(profile: Profile) -> Outcome:
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        state: State = "fail" if profile.compiles or profile.offloads_optimizer else "warn"
        return state, "no gcc: torch.compile and DeepSpeed build with it", "apt-get install gcc"
    if profile.offloads_optimizer and shutil.which("ninja") is None:
        return "fail", "no ninja: DeepSpeed builds its CPU optimizer with it", "pip install ninja, and put it on PATH"
    return "ok", "gcc is there", ""


def _port() -> Outcome:
    port = os.environ.get("MASTER_PORT")
    with socket.socket() as probe:
        try:
            probe.bind(("", int(port or 0)))
        except OSError as error:
            return "fail", f"MASTER_PORT {port}: {error.strerror}", "unset it, or name a free port"
        return "ok", f"{probe.getsockname()[1]} is free", ""
