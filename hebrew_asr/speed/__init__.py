"""MEASURE speed: a step's, part by part, in every phase; what else a run waits for; and the usual way's beside it.

Imports text, config, launching, audio, data, model, engine, evaluation, training and planning.
"""
