"""WATCH a run: its live view on a terminal or its lines in a log, and what it takes of its machines.

Imports config, engine and report.
"""
