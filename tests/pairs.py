"""All pairs: few combinations of values in which each two values of different parameters stand together somewhere.

Most faults that need more than one setting need two of them, and all pairs take a dozen combinations where all
combinations would be millions.
"""

from __future__ import annotations

from itertools import combinations
from typing import TypeVar

T = TypeVar("T")


def cover_pairs(values: dict[str, tuple[T, ...]]) -> list[dict[str, T]]:
    """Combine the values of parameters, greedily, until each pair is covered; the same values always give the same list."""
    # A dict is a set that keeps its order.
    missing = dict.fromkeys(
        frozenset({(one, a), (other, b)})
        for (one, ones), (other, others) in combinations(values.items(), 2)
        for a in ones
        for b in others
    )
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for name, choices in values.items():
            if name not in row:
                gains = {
                    choice: sum(frozenset({(name, choice), one}) in missing for one in row.items()) for choice in choices
                }
                row[name] = max(gains, key=gains.__getitem__)
        rows.append({name: row[name] for name in values})
        for pair in combinations(row.items(), 2):
            missing.pop(frozenset(pair), None)
    return rows
