"""Two profiles of the property tests. ``fixed``, the default, draws the same examples each time; ``thorough`` draws
many more, from a new seed that it prints: ``launch/test --hypothesis-profile thorough -m hypothesis``.
"""

from __future__ import annotations

from hypothesis import settings

FIXED, THOROUGH = "fixed", "thorough"
_EXAMPLES = 100
_TIMES = 20

settings.register_profile(FIXED, derandomize=True, deadline=None, max_examples=_EXAMPLES)
settings.register_profile(
    THOROUGH, derandomize=False, deadline=None, max_examples=_TIMES * _EXAMPLES, database=None, print_blob=True
)


def examples(count: int) -> settings:
    """Settings for a test that draws ``count`` examples instead of 100, and 20 times as many in the thorough profile.

    A number of examples that a test set itself would hide that of the profile.
    """
    return settings(max_examples=count * settings.default.max_examples // _EXAMPLES)
