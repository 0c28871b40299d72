"""SERVE a model over HTTP, by the interface of OpenAI's transcriptions.

Imports text, audio and inference.
"""
