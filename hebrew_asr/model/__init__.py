"""Qwen3-ASR: loading, packed forward, compilation, attention, phases.

Imports text, config and data.
"""
