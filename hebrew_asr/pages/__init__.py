"""Frame, markup and charts of every HTML page: the report of a run, the audit of a set, the page of serve.

Imports no other room.
"""
