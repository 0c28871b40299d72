"""Hebrew text: the normalizer, the prompt and its target, word errors.

Imports no torch, and of ours only the ground.
"""
