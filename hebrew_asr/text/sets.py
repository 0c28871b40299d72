"""Which data set a clip is of: ``prepare`` puts the name of its source before the first slash of its id."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_TOLD = 20


def set_of(identity: str) -> str:
    """The data set of a clip, by its id."""
    return identity.partition("/")[0]


def sets_of(identities: Sequence[str]) -> list[str] | None:
    """The data set of each clip; None where their ids name none, or all one, or more than could be told apart."""
    found = list(map(set_of, identities))
    are_named = all("/" in identity for identity in identities)
    return found if are_named and 1 < len(set(found)) <= _MOST_TOLD else None
