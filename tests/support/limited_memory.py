"""``hebrew_asr/train.py`` on a GPU of which it may use only so much: ``limited_memory.py GIB PEAK_FILE ARGUMENTS…``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from hebrew_asr.train import main

if __name__ == "__main__":
    limit_gib, peak_file = float(sys.argv[1]), Path(sys.argv[2])
    total_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib / total_gib))
    code = main(sys.argv[3:])
    peak_file.write_text(str(torch.cuda.max_memory_allocated() / 2**30))
    sys.exit(code)
