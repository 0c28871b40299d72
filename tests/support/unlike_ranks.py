"""Training whose ranks were started with other arguments each, as by hand or by a faulty job script."""

from __future__ import annotations

import json
import os

from hebrew_asr.train import main as train


def main(argv: list[str]) -> int:
    """``argv``: for each rank its arguments, as a JSON list."""
    return train(json.loads(argv[int(os.environ["RANK"])]))
