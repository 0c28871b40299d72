"""One markup and chart kit for every HTML page: a run's report and the audit of a set.

Imports nothing of ours.
"""
