"""What sets of 234 to 500,000 hours take, on paper: from unit costs that were measured, and where each part breaks.

    python -m tests.benchmarks.scale [--price-per-gpu-hour 3]

Nothing is run. Each constant says where it was measured; RESULTS.md has the machines. Whatever is not linear in the
number of clips, as queues at a file server, is not in it.
"""

from __future__ import annotations

import argparse

CLIPS_PER_HOUR = 196_000 / 234
"""Of the Round 2 corpora."""
PREPARE_CPU_MS_PER_CLIP = 10.3
"""Of the pool, cluster_speed.py, mp3 of 44.1 kHz, 4.6 s on average; on busy cores, so an upper bound."""
STORE_MB_PER_HOUR = 3600 * 16_000 * 2 * 0.5 / 1e6
"""flac of 16 kHz and 16 bits at half the size of its samples."""
TABLE_BYTES_PER_CLIP = (1372 + 1235) * 2**20 / 5e6
"""JSON lines and Arrow, manifest_scale.py."""
PARENT_BYTES_PER_ROW = 309 * 2**20 / 1e6
"""Own memory of the process that assembles the set, manifest_scale.py --others files, 1,000,000 rows."""
MAPPED_CPU_S_PER_CLIP = 0.84 / 5e6
"""Of opening a manifest on each rank, manifest_scale.py: its text and its columns are hashed."""
EPOCHS, CLIPS_PER_S = (2, 3), (548, 510)
"""Phase B and phase A, one H200."""
CLIPS_PER_STEP = 64


def line(hours: int, price: float) -> str:
    """A row of the table."""
    clips = hours * CLIPS_PER_HOUR
    gpu_hours = sum(epochs * clips / rate for epochs, rate in zip(EPOCHS, CLIPS_PER_S, strict=True)) / 3600
    cells = (
        f"{hours:,}",
        f"{clips / 1e6:.1f} M",
        f"{clips * PREPARE_CPU_MS_PER_CLIP / 3.6e6:,.1f}",
        f"{clips * PARENT_BYTES_PER_ROW / 2**30:,.1f}",
        f"{hours * STORE_MB_PER_HOUR / 1e3:,.0f}",
        f"{clips * TABLE_BYTES_PER_CLIP / 1e9:,.2f}",
        f"{clips * MAPPED_CPU_S_PER_CLIP:,.1f}",
        f"{sum(EPOCHS) * clips / CLIPS_PER_STEP:,.0f}",
        f"{gpu_hours:,.1f}",
        f"{gpu_hours * price:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--price-per-gpu-hour", type=float, default=3.0)
    price = parser.parse_args().price_per_gpu_hour
    head = (
        "hours | clips | prepare, core-hours | prepare's parent, GiB | store, GB | tables, GB | opening, CPU s per rank"
    )
    print(f"| {head} | steps of 64, 5 epochs | H200-hours | at {price:g} each |")
    print("|---" * 10 + "|")
    for hours in (234, 5_000, 50_000, 500_000):
        print(line(hours, price))


if __name__ == "__main__":
    main()
