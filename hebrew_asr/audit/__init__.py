"""Decodes and checks every clip of a prepared set, and shows what it found on one page.

Imports text, pages, remote, audio, data and corpus.
"""
