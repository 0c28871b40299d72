"""SERVE a model: over HTTP by the interface of OpenAI's transcriptions, as a web page, within the ``ivrit`` package.

Imports text, pages, audio and inference.
"""
