"""TELL about a run: its records, where they are sent, the console, the HTML page.

Imports text, config, pages and data.
"""
