"""Which data set a clip is of, by its id, and which split a file, by its path.

``prepare`` puts the name of a clip's source before the first slash of its id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPLIT_WORD = re.compile(
    r"(?:^|[/._-])(?:(?P<train>train|training)|(?P<test>test|testing)|(?P<validation>validation|valid|val|dev|eval))"
    r"(?=$|[/._-])",
    re.I,
)
_MOST_TOLD = 20


def set_of(identity: str) -> str:
    """The data set of a clip, by its id."""
    return identity.partition("/")[0]


def sets_of(identities: Sequence[str]) -> list[str] | None:
    """The data set of each clip; None where their ids name none, or all one, or more than could be told apart."""
    found = list(map(set_of, identities))
    are_named = all("/" in identity for identity in identities)
    return found if are_named and 1 < len(set(found)) <= _MOST_TOLD else None


def split_of(relative_path: str) -> str | None:
    """``train``, ``test`` or ``validation``, as a file's own path says; None where it says nothing.

    ``data/test-00000-of-00004.parquet`` is of the test split, of ``part7.parquet`` nothing is known. The word nearest
    to the file name decides, so ``test/train-0.parquet`` is training data.
    """
    words = [*_SPLIT_WORD.finditer(relative_path)]
    return words[-1].lastgroup if words else None
