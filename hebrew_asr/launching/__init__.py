"""Starts ranks and stops them: the launcher, its processes, stop requests, ports.

Imports no other room.
"""
