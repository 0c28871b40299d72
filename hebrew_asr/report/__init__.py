"""TELL about a run: the sinks of its records, the console, its HTML page.

Imports text, config, pages and data.
"""
