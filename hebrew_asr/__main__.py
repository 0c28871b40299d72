"""``python -m hebrew_asr``: the command line where its script is not on PATH."""

import signal
import sys


def main() -> int:
    """As :func:`hebrew_asr.cli.main`; Ctrl-C ends it without a word while that is loaded, seconds on a slow disk."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hebrew_asr import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
