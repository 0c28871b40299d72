"""Forward and backward over packed clips: eager, compiled and recorded, or with weights that ranks share.

Imports config and data.
"""
