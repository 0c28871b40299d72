"""MAKE a set: prepare, split. It ends at the manifest.

Imports text, config, audio, data and sources.
"""
