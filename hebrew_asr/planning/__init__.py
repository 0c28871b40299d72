"""What a run takes: memory, steps and disk, foretold; speed, measured; what this machine lacks for it.

Imports text, config, remote, launching, audio, data, model, corpus, engine, checkpoints, watching, evaluation and
training.
"""
