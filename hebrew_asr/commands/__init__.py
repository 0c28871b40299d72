"""One file per subcommand: it parses and calls.

Imports every room.
"""
