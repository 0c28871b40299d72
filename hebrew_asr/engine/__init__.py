"""The only room that imports deepspeed or torch.distributed: ranks, ZeRO, changes of phase.

Imports config, launching, data and model.
"""

import logging
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one and warns, once per process
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
