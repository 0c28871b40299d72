"""SERVE a model over HTTP, by the interface of OpenAI's transcriptions, and as a web page.

Imports text, pages, audio and inference.
"""
