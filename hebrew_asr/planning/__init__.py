"""What a run takes: memory, steps and disk, foretold; which learning rates its data bear; what this machine lacks.

Imports text, config, remote, launching, audio, data, model, corpus, engine, checkpoints, watching, evaluation and
training.
"""
