"""KEEP a run: checkpoints that are whole or absent, the one that it goes on from, and the models that they hold.

Imports config, engine, model and report.
"""
