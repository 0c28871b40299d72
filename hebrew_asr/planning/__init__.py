"""What a run takes: memory, steps and disk before it starts, and its speed as measured.

Imports training and the rooms below it.
"""
