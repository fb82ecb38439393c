"""Which of many changes are more than chance.

A hundred figures of two equal runs have five beyond their 95% bounds. So changes are judged together, by the step-up
procedure of Benjamini and Hochberg: where nothing changed, a change is seen in one of twenty comparisons at most, and
where something did, one in twenty of the changes seen is none. It is less in practice, since a change also has to be
beyond its tolerance for sure.
"""

from __future__ import annotations

from collections.abc import Sequence

FALSE_SHARE = 0.05


def beyond_chance(chances: Sequence[float], false_share: float = FALSE_SHARE) -> list[bool]:
    """For each figure whether it has changed, from how likely it would be by chance."""
    ranked = sorted(chances)
    limit = -1.0
    for rank, chance in enumerate(ranked, start=1):
        if chance <= false_share * rank / len(ranked):
            limit = chance
    return [chance <= limit for chance in chances]
