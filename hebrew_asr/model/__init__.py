"""Qwen3-ASR itself: its folders and layouts, its sizes, and which of its weights train in a phase.

Imports text and config.
"""
