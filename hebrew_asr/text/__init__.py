"""Hebrew text: the normalizer, the prompt and its target, word errors, and files of text.

Imports no torch and no other room.
"""
