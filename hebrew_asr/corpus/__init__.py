"""MAKE a set: read sources, prepare, split. It ends at the manifest.

Imports text, config, audio and data.
"""
