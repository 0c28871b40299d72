"""Hebrew text: the normalizer, the prompt and its target, word errors, files of text, and texts with times.

Imports no torch and no other room.
"""
