"""One file per subcommand of ``hebrew-asr``: a dataclass of arguments with ``run()``."""
