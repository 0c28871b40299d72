"""TRAIN: the loop, the session behind its lines, set-up, schedule, feed, evaluation, faults.

Imports every room but planning, demo and commands.
"""
