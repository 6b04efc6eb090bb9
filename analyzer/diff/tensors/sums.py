"""Pure NumPy: what two versions of a matrix have in common, summed up from their tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analyzer.diff.changes import Meeting
from analyzer.numbers.floats import Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.scan.outliers import exact_sum


@dataclass
class Sums:
    """Sums over the values of one tensor, or of several that are parts of it; those of products are exact at the end.

    `numbers` are all, `equal` those that are the same in both versions (two NaN are, and the two zeros), `nonfinite`
    those that are not finite in one of them, over which nothing else is summed.
    """

    numbers: int = 0
    equal: int = 0
    nonfinite: int = 0
    changes: list[float] = field(default_factory=list)
    """Of the squares of what changed, as `olds` and `news` of those of the values, and `products` of both."""
    olds: list[float] = field(default_factory=list)
    news: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)

    @property
    def unchanged(self) -> float | None:
        """The share of values that are the same, null where there are none."""
        return self.equal / self.numbers if self.numbers else None

    @property
    def relative_change(self) -> float | None:
        """||new - old|| / ||old||, null where the old norm is zero or either is beyond float64."""
        return _over(exact_sum(self.changes), exact_sum(self.olds))

    @property
    def cosine(self) -> float | None:
        """<old, new> / (||old|| ||new||), null where a norm is zero or one is beyond float64."""
        old, new = math.sqrt(exact_sum(self.olds)), math.sqrt(exact_sum(self.news))
        if not (old and new and math.isfinite(old) and math.isfinite(new)):
            return None
        return max(-1.0, min(1.0, exact_sum(self.products) / old / new))


def _over(squares: float, of_squares: float) -> float | None:
    if not of_squares or not math.isfinite(squares) or not math.isfinite(of_squares):
        return None
    return math.sqrt(squares / of_squares)


def joined(parts: Sequence[Sums]) -> Sums:
    """Return the sums over all parts of a tensor."""
    lists = ("changes", "olds", "news", "products")
    return Sums(
        *(sum(getattr(part, name) for part in parts) for name in ("numbers", "equal", "nonfinite")),
        *([number for part in parts for number in getattr(part, name)] for name in lists),
    )


class Summing(Meeting):
    """Sums up two versions of a matrix by their values."""

    def __init__(self, old: Matrix, new: Matrix) -> None:
        """See Meeting."""
        super().__init__(old, new)
        self.sums = Sums()

    def _compare_chunk(self, start: int, old_bits: Unsigned, new_bits: Unsigned) -> None:
        old_format, new_format = (matrix.encoding.decoded for matrix in self._matrices)
        old = old_format.decode(old_bits)
        identical = old_format == new_format and np.array_equal(old_bits, new_bits)
        new = old if identical else new_format.decode(new_bits)
        equal = old.size if identical else int(np.count_nonzero((old == new) | (np.isnan(old) & np.isnan(new))))
        finite = np.isfinite(old) & np.isfinite(new)
        nonfinite = old.size - int(np.count_nonzero(finite))
        if nonfinite:
            old, new = old[finite], new[finite]
        with np.errstate(over="ignore"):
            olds = float(np.einsum("i,i->", old, old))
            if identical:
                rest = [0.0, olds, olds]
            else:
                change = new - old
                rest = [float(np.einsum("i,i->", a, b)) for a, b in ((change, change), (new, new), (old, new))]
        self._add(old_bits.size, equal, nonfinite, olds, *rest)

    def _add(self, numbers: int, equal: int, nonfinite: int, *squares: float) -> None:
        with self._meeting:
            sums = self.sums
            sums.numbers += numbers
            sums.equal += equal
            sums.nonfinite += nonfinite
            for kept, number in zip((sums.olds, sums.changes, sums.news, sums.products), squares, strict=False):
                kept.append(number)


class Counting(Summing):
    """Counts what is the same in two versions of a matrix, bit for bit."""

    def _compare_chunk(self, start: int, old_bits: Unsigned, new_bits: Unsigned) -> None:
        self._add(old_bits.size, int(np.count_nonzero(old_bits == new_bits)), 0)
