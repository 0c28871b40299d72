"""``python -m hebrew_asr``: the command line where its script is not on PATH."""

import sys

from hebrew_asr.cli import main

sys.exit(main())
