"""The whole job in small: synthetic Hebrew speech, and a tiny model of the same architecture.

Imports text, audio and data.
"""
