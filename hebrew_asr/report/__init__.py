"""One self-contained HTML page for a training run."""

from hebrew_asr.report.page import write_report

__all__ = ["write_report"]
