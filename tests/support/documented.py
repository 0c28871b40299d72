"""The commands that README.md and the other pages for users show, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", ".github/TROUBLESHOOTING.md", ".github/CONTRIBUTING.md", "launch/cluster.md")
_STARTS = r"(?:echo .* \| )?(?:hebrew-asr|deepspeed|launch/\w+|sbatch|python)\b.*"


def blocks(page: str) -> list[str]:
    """Lines of the page's code blocks that are commands, without their comments, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def programs(page: str) -> list[str]:
    """The page's code blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def spans(page: str) -> list[str]:
    """Commands and options in the page's sentences."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    found = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return [span for span in dict.fromkeys(found) if re.fullmatch(rf"{_STARTS}|--\w.*", span)]


def words_of(line: str) -> list[str]:
    """Words of a command, that before a pipe left out."""
    return shlex.split(line.rpartition(" | ")[2])
