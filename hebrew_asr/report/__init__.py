"""TELL about a run: its records, where they are sent, the HTML page.

Imports text, config, pages, remote and data.
"""
