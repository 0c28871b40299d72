"""Two profiles of the property tests. ``fixed``, the default, draws the same examples each time; ``thorough`` draws
many more, from a new seed that it prints: ``launch/test --hypothesis-profile thorough -m hypothesis``.
"""

from __future__ import annotations

from hypothesis import settings

FIXED, THOROUGH = "fixed", "thorough"
_PERCENT = {FIXED: 40, THOROUGH: 2000}
"""Of the examples that a test asks for, 100 unless it says otherwise."""

settings.register_profile(FIXED, derandomize=True, deadline=None, max_examples=_PERCENT[FIXED])
settings.register_profile(
    THOROUGH, derandomize=False, deadline=None, max_examples=_PERCENT[THOROUGH], database=None, print_blob=True
)


def examples(count: int) -> settings:
    """Settings for a test that needs ``count`` examples where others need 100: each profile draws its share of them.

    A number of examples that a test set itself would hide that of the profile.
    """
    return settings(max_examples=count * settings.default.max_examples // 100)
