"""Hebrew text: the normalizer, the prompt and its target, word errors.

Imports no torch and no other room.
"""
