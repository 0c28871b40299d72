"""``hebrew_asr/train.py`` with less GPU memory: prints the peak of what it took.

usage: cramped.py BYTES (0: all there is) ARGUMENTS OF train.py …
"""

from __future__ import annotations

import sys

import torch

from hebrew_asr.train import main

if __name__ == "__main__":
    limit_bytes = int(sys.argv[1])
    if limit_bytes:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes, 0)
    code = main(sys.argv[2:])
    print(f"peak bytes {torch.cuda.max_memory_allocated()} reserved {torch.cuda.max_memory_reserved()}")
    sys.exit(code)
