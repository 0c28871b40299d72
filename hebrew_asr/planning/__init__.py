"""What a run takes: memory, steps and disk, foretold; speed, measured.

Imports text, config, audio, data, model, engine and training.
"""
