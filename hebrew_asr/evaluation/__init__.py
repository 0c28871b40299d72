"""MEASURE a model: decode test sets with it, on all GPUs, to be scored.

Imports text, config, audio, data and inference.
"""
