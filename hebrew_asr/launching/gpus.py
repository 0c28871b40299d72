"""Which GPUs of this machine a job may use: those that ``CUDA_VISIBLE_DEVICES`` names, in its order."""

from __future__ import annotations

import os

from hebrew_asr.errors import EnvironmentProblem

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(num_usable: int) -> list[str]:
    """The names of the GPUs that CUDA shows this process, as ``CUDA_VISIBLE_DEVICES`` names them.

    An entry is a number, the start of a UUID (``GPU-…``) or a MIG instance (``MIG-…``). CUDA ignores the first entry
    that is none of its devices, and all after it.

    Args:
        num_usable: GPUs that CUDA shows; it has read the variable already.

    Raises:
        EnvironmentProblem: some entries are not usable, or several are MIG instances, between which NCCL cannot
            communicate.
    """
    listed = os.environ.get(VISIBLE)
    if listed is None:
        return [str(number) for number in range(num_usable)]
    names = [name.strip() for name in listed.split(",")]
    end = next((place for place, name in enumerate(names) if not name or name.startswith("-")), len(names))
    names = names[:end]
    if len(names) != num_usable:
        raise EnvironmentProblem(
            f"{VISIBLE}={listed}: CUDA can use {num_usable} of the {len(names)} GPUs named; name each once, by a "
            "number or UUID that nvidia-smi -L lists, or unset the variable to use all"
        )
    if len(names) > 1 and any(name.startswith("MIG-") for name in names):
        raise EnvironmentProblem(
            f"{VISIBLE}={listed} names MIG instances, and NCCL cannot train on several of those; name one instance, "
            "or whole GPUs"
        )
    return names
