"""Frame, markup and charts of every HTML page: the report of a run and the audit of a set.

Imports no other room.
"""
