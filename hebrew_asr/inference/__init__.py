"""USE a model: transcribe with it, write it as a folder for others.

Imports text, config, pages, audio, remote, data, model, passes and report.
"""
