"""Sound: decoding, log-mel features, augmentation, frame arithmetic.

Imports no other room.
"""
