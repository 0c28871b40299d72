"""What a run takes: memory, steps and disk, foretold; speed, measured.

Imports training and the rooms below it.
"""
