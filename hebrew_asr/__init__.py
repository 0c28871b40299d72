"""Fine-tunes Qwen3-ASR for Hebrew by gradual unfreezing on DeepSpeed."""

__version__ = "0.1.0"
