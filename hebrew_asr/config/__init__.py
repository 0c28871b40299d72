"""What is learned (recipes) and on what (hardware profiles), as checked records.

Imports no torch, and of ours only the ground.
"""
