"""READ what lies elsewhere, through fsspec: files at URLs in place, and sets at URLs with a cache on this machine.

Imports no other room.
"""
