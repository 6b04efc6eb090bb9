"""Where protecting a weight changes nothing, and the figures that tell."""

from __future__ import annotations

from collections.abc import Sequence

from analyzer.base.text import count_of
from analyzer.catalog.lookup import KnownCoordinate

SHOWN = 3


def pointless(coordinates: Sequence[KnownCoordinate]) -> list[str]:
    """Return in a sentence which of these weights rounding to nearest keeps as they are, by their ranks as stored.

    The list is empty where no rank is known.
    """
    known = [each for each in coordinates if each.row_rank is not None]
    if not known:
        return []
    extremes = [each for each in known if each.row_rank == 1]
    shown = "; ".join(
        f"{each.coordinate} is {each.value:g}, the next of its row {each.row_others_max:g}" for each in extremes[:SHOWN]
    )
    ranks = {128: [each.rank_in_128 for each in known], 32: [each.rank_in_32 for each in known]}
    runs = [f"{of.count(1)} of their run of {run}" for run, of in ranks.items() if any(of)]
    large = f"{len(extremes)} {'is' if len(extremes) == 1 else 'are'} the largest of their row"
    said = [f"{large} ({shown})" if shown else large, *runs]
    return [
        f"Of {count_of(len(known), 'weight')} as stored, {', '.join(said)}. Rounding to nearest "
        "with one scale for such a group keeps its largest weight exactly: protecting that one changes nothing of it."
    ]
