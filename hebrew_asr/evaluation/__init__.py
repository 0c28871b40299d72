"""MEASURE a model: decode test sets with it, on all GPUs, to be scored; and while it trains, an eval split.

Imports text, config, audio, data, inference, report and engine.
"""
