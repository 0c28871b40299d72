"""Recipes (what is learned, and how fast) and hardware profiles (on what), as checked records.

Imports no torch and no other room.
"""
