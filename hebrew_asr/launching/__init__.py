"""Starting ranks, and being one of those that were started: processes, stop requests, ports.

Imports config.
"""
