"""TRAIN a model: the loop, what its lines do, set-up, rehearsal, feed, faults.

Imports every room but sources, audit, planning, demo and commands.
"""
