"""What sets of 234 to 500,000 hours take, on paper: from unit costs that were measured, and where each part breaks.

    python -m tests.benchmarks.scale [--price-per-gpu-hour 3]

Nothing is run. Each constant says where it was measured; RESULTS.md has the machines. Whatever is not linear in the
number of clips, as queues at a file server, is not in it.
"""

from __future__ import annotations

import argparse

from hebrew_asr.planning.clock import PREPARE_CPU_S_PER_CLIP, measured_speeds

CLIPS_PER_HOUR = 196_000 / 234
"""Of the Round 2 corpora."""
STORE_MB_PER_HOUR = 3600 * 16_000 * 2 * 0.5 / 1e6
"""flac of 16 kHz and 16 bits at half the size of its samples: 0.505 of ten recordings of Hebrew, cut to 4.6 s."""
SHARD_GB = 2**30 / 1e9
TABLE_BYTES_PER_CLIP = (1372 + 1271) * 2**20 / 5e6
"""JSON lines and Arrow, manifest_scale.py."""
PARENT_BYTES_PER_ROW = 345
"""Own memory of the process that assembles the set, at the split of 5,000,000 clips, manifest_scale.py --others split.
With all that follows, 1,000,000 rows took 308 in files and 314 in shards (--others files shards)."""
ORDER_BYTES_PER_CLIP = 4
"""What each process that reads keeps of an epoch, manifest_scale.py --others order; a mixture takes twice."""
MAPPED_CPU_S_PER_CLIP = 0.84 / 5e6
"""Of opening a manifest on each rank, manifest_scale.py: its text and its columns are hashed."""
EPOCHS, CLIPS_PER_S = (2, 3), (710, 679)
"""Phase B and phase A, one H200."""
CLIPS_PER_STEP = 64
EVAL_SHARE = 0.05
"""Of the clips, prepare's default: they are not trained on, and decoded whole at each epoch's end."""
WHOLE_EVALUATIONS = sum(EPOCHS) + 2
"""With those by which the final model is chosen (evaluation.choose_final)."""
SAMPLES_PER_STEP, SAMPLE_CLIPS = 1 / 500, 100


def line(hours: int, price: float) -> str:
    """A row of the table."""
    clips = hours * CLIPS_PER_HOUR
    trained = clips * (1 - EVAL_SHARE)
    steps = sum(EPOCHS) * trained / CLIPS_PER_STEP
    training_h = sum(epochs * trained / rate for epochs, rate in zip(EPOCHS, CLIPS_PER_S, strict=True)) / 3600
    times, known = WHOLE_EVALUATIONS + SAMPLES_PER_STEP * steps, measured_speeds()
    decoded = WHOLE_EVALUATIONS * clips * EVAL_SHARE + SAMPLES_PER_STEP * steps * SAMPLE_CLIPS
    evaluating_h = (times * known.evaluation_s + decoded * known.evaluation_s_per_clip) / 3600
    cells = (
        f"{hours:,}",
        f"{clips / 1e6:.1f} M",
        f"{clips * PREPARE_CPU_S_PER_CLIP / 3600:,.1f}",
        f"{clips * PARENT_BYTES_PER_ROW / 2**30:,.1f}",
        f"{hours * STORE_MB_PER_HOUR / 1e3:,.0f}",
        f"{hours * STORE_MB_PER_HOUR / 1e3 / SHARD_GB:,.0f}",
        f"{clips * TABLE_BYTES_PER_CLIP / 1e9:,.2f}",
        f"{clips * MAPPED_CPU_S_PER_CLIP:,.1f}",
        f"{clips * ORDER_BYTES_PER_CLIP / 2**30:,.2f}",
        f"{steps:,.0f}",
        f"{training_h:,.1f}",
        f"{evaluating_h:,.1f}",
        f"{(training_h + evaluating_h) * price:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--price-per-gpu-hour", type=float, default=3.0)
    price = parser.parse_args().price_per_gpu_hour
    head = (
        "hours | clips | prepare, core-hours | prepare's parent, GiB | store, GB | shards | tables, GB "
        "| opening, CPU s per rank | order, GiB per process"
    )
    print(f"| {head} | steps of 64, 5 epochs | training, H200-hours | evaluating | at {price:g} each |")
    print("|---" * 13 + "|")
    for hours in (234, 5_000, 50_000, 500_000):
        print(line(hours, price))


if __name__ == "__main__":
    main()
