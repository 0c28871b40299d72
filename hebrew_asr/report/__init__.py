"""TELL about a run: its records, where they are sent, the HTML page.

Imports text, config, pages and data.
"""
