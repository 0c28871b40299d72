"""Decodes and checks every clip of a prepared set, and shows what it found on one page.

Imports text, pages, audio, data and corpus.
"""
