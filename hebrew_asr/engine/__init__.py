"""With flat the only room that imports deepspeed or torch.distributed: ranks, ZeRO, changes of phase, stops.

Imports config, launching, data, model, passes and flat.
"""

import contextlib
import logging
import os
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hebrew_asr" / "inductor"
# What is compiled goes there, and into /tmp, which rented machines lose or share, only where it cannot be written.
# torch._dynamo settles it when it is imported, so this comes before everything that does so.
with contextlib.suppress(OSError):
    _CACHE.mkdir(parents=True, exist_ok=True)
    if os.access(_CACHE, os.W_OK | os.X_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHE))

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one and warns, once per process
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
