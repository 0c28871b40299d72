"""READ what lies elsewhere, through fsspec: files at URLs in place, sets at URLs with a cache on this machine, and
what a joined set was made of.

Imports no other room.
"""
