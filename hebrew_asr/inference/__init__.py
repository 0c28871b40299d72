"""USE a model: transcribe with it, write it as a folder for others.

Imports text, config, audio, data and model.
"""
