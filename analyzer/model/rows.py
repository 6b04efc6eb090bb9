"""Runs a block on a few rows of its batch at a time, and rows that are still alike but once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from analyzer.base.errors import ForwardError

SHARED_BIAS = "position_bias"  # of MPT's attention, [heads, 1, T]: one for all rows of a batch
FLAT_BIAS = "alibi"  # of BLOOM's attention, [rows * heads, 1, T]


class Kind(NamedTuple):
    """What a row of a batch is at one block: rows of the same kind are alike after it.

    The prompt, what was done to the row before this block, and what is done to it here.
    """

    prompt: Hashable
    before: Hashable
    here: Hashable


class Untouched:
    """What blocks give for prompts to which nothing was done, a row each: as much of it as `limit` bytes hold."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._given: dict[Hashable, Any] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._given

    def __getitem__(self, key: Hashable) -> Any:
        return self._given[key]

    def keep(self, key: Hashable, given: Any) -> None:
        """Keep what a block gives, if there is room, and if all of it is known to be of this row."""
        size = _row_size(given)
        if size is not None and size <= self._left:
            self._left -= size
            self._given[key] = given


class Rows:
    """The rows of a batch on their way through a block: attention's memory grows with rows, weights' does not."""

    def __init__(self, row_bytes: int, heads: int) -> None:
        """A block runs as many rows at once as take `row_bytes` of memory; `heads` is its attention's number."""
        self.row_bytes = row_bytes
        self.in_hand = [0]
        """The rows of the batch that the running block has in hand."""
        self.first = [0]
        """Of each row of the batch the one that runs for it in the running block: itself, or one that is alike."""
        self.kind: Callable[[str, int], Kind] = lambda _, row: Kind(row, None, None)
        """Tells, by block and row, what kind the row is of."""
        self.shape = 0, 0
        """Of the batch that runs: rows, tokens."""
        self._heads = heads
        self._untouched: Untouched | None = None

    @contextmanager
    def told_apart(self, kind: Callable[[str, int], Kind]) -> Iterator[None]:
        """While the context lasts, run rows that are alike once for all of them.

        Rows of one prompt to which different things were done are alike again where a block takes the same of both,
        bit for bit; but for blocks that are given mappings, in which something of rows may be kept for later blocks.
        """
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    @contextmanager
    def remembering(self, untouched: Untouched | None) -> Iterator[None]:
        """While the context lasts, run a block on a prompt to which nothing was done only where that is not kept.

        What is inside of a block sees nothing of such a row then. For models that hand nothing from block to block
        that is not seen here (checking.py).
        """
        before, self._untouched = self._untouched, untouched
        try:
            yield
        finally:
            self._untouched = before

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """While the context lasts, run each row of a batch through a block by itself."""
        before, self.row_bytes = self.row_bytes, 1
        try:
            yield
        finally:
            self.row_bytes = before

    def run(self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `forward`, that of the block of this name, makes of the whole batch."""
        if self.shape[0] == 1 and self._untouched is None:
            self.in_hand = [0]
            return forward(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if args and is_stacked(hidden, *self.shape):
            turned = hidden.transpose(0, 1)
            return self._run(name, partial(_turned, forward), turned, (turned, *args[1:]), kwargs).transpose(0, 1)
        if hidden.shape[0] > self.shape[0] or tokens_come_first(hidden, self.shape[0]):
            raise UnsplittableError("a block takes a stream of more rows than were given")
        return self._run(name, forward, hidden, args, kwargs)

    def _run(
        self,
        name: str,
        forward: Callable[..., Any],
        hidden: torch.Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        batch = hidden.shape[0]
        at_once = max(1, self.row_bytes // self.bytes_of_one(hidden))
        first = self.first = self._first_alike(name, hidden, args, kwargs)
        distinct = sorted(set(first))
        keys = self._keys(name, hidden, distinct, args, kwargs)
        kept = self._kept(keys)
        running = [row for row in distinct if row not in kept]
        parts = [_Part(1, given, [{}]) for given in kept.values()]  # into `kwargs`, the only mapping, nothing
        for start in range(0, len(running), at_once):
            self.in_hand = running[start : start + at_once]
            if len(self.in_hand) == batch:
                output = forward(*args, **kwargs)
                self._keep(keys, output)
                return output
            few_args, few = _picked((args, kwargs), batch, self.in_hand)
            given = [(each, dict(each)) for each in _mappings((few_args, few))]
            output = forward(*few_args, **few)
            self._keep(keys, output)
            parts.append(_Part(len(self.in_hand), output, [_written(each, before) for each, before in given]))
        place = {row: index for index, row in enumerate((*kept, *running))}
        back = torch.tensor([place[row] for row in first], device=hidden.device)
        counts = [part.rows for part in parts]
        for number, mapping in enumerate(_mappings((args, kwargs))):
            mapping.update(_joined([part.written[number] for part in parts], counts, back))
        return _joined([part.output for part in parts], counts, back)

    def _keys(
        self, name: str, hidden: torch.Tensor, rows: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[int, Hashable]:
        """Return by row, of those to which nothing was done, what tells this run of a block on it from all others.

        A block may run several times in a pass, each time on something else. None where what is given for a row could
        be no part of what the block gives.
        """
        if self._untouched is None or hidden.ndim != 3 or _mappings([*args, *kwargs.values()]):
            return {}
        kinds = {row: self.kind(name, row) for row in rows}
        return {
            row: (name, kind.prompt, _bits(hidden[row, -1]).cpu().numpy().tobytes())
            for row, kind in kinds.items()
            if not kind.before and not kind.here
        }

    def _kept(self, keys: Mapping[int, Hashable]) -> dict[int, Any]:
        """Return what is kept of what a block gives for rows."""
        untouched = self._untouched
        return {} if untouched is None else {row: untouched[key] for row, key in keys.items() if key in untouched}

    def _keep(self, keys: Mapping[int, Hashable], output: Any) -> None:
        """Keep what a block gave for those rows in hand that have a key."""
        for place, row in enumerate(self.in_hand):
            if self._untouched is not None and row in keys and _row_size(output, len(self.in_hand)) is not None:
                self._untouched.keep(keys[row], _picked(output, len(self.in_hand), [place]))

    def _first_alike(self, name: str, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Return of each row the first that this block makes the same of."""
        batch = hidden.shape[0]
        kinds = [self.kind(name, row) for row in range(batch)]
        if len(set(kinds)) == 1 or _mappings([*args, *kwargs.values()]):
            return [kinds.index(kind) for kind in kinds]
        # What differs anywhere nearly always does at the last token: the rest is compared only where that is the same.
        last = _bits(hidden[:, -1].flatten(1)).cpu().numpy()
        distinct: dict[Hashable, list[int]] = {}
        first: list[int] = []
        for row, kind in enumerate(kinds):
            others = distinct.setdefault((kind.prompt, kind.here, last[row].tobytes()), [])
            given = partial(_picked, (args, kwargs), batch)
            same = (each for each in others if kinds[each] == kind or _are_equal(given([each]), given([row])))
            first.append(next(same, row))
            if first[-1] == row:
                others.append(row)
        return first

    def bytes_of_one(self, hidden: torch.Tensor) -> int:
        """Return about what a block needs for one row: its inner activations, and eager attention's weights twice."""
        tokens = hidden.shape[-2] if hidden.ndim < 4 else hidden.shape[1]  # [rows, T, streams, width]
        width = hidden.shape[-1] if hidden.ndim < 4 else hidden.shape[-2] * hidden.shape[-1]
        return int(tokens * (16 * width + 2 * self._heads * tokens) * 4)


def is_stacked(hidden: torch.Tensor, rows: int, tokens: int) -> bool:
    """Tell whether several streams come as a stack before the rows, [streams, rows, T, width] (Gemma 3n's AltUp)."""
    return hidden.ndim == 4 and hidden.shape[:2] != (rows, tokens) and hidden.shape[1:3] == (rows, tokens)


def tokens_come_first(hidden: torch.Tensor, rows: int) -> bool:
    """Tell whether tokens come before rows, [T, rows, width] (FSMT, XLNet): what is beside it has rows anywhere."""
    return hidden.ndim == 3 and hidden.shape[1] == rows != hidden.shape[0]


def _turned(forward: Callable[..., Any], hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run a block that takes and gives such a stack on one whose rows come first, and give one like it."""
    return forward(hidden.transpose(0, 1), *args, **kwargs).transpose(0, 1)


class UnsplittableError(ForwardError):
    """A block takes or gives something that is not known to be split by rows; each row by itself may run."""

    def __init__(
        self, words: str = "a block gives something beside the stream that is not known to have a part for each row"
    ) -> None:
        super().__init__(words)


@dataclass(frozen=True)
class _Part:
    """A block's run on a few rows: how many, what it gave, and what it wrote into each mapping that it was given."""

    rows: int
    output: Any
    written: Sequence[Mapping[Any, Any]]


def _picked(value: Any, batch: int, rows: list[int], name: str = "") -> Any:
    """Return the rows of every tensor in a value that has one for each row of the batch."""
    if isinstance(value, torch.Tensor):
        if name == FLAT_BIAS and value.ndim == 3:
            return value.reshape(batch, -1, *value.shape[1:])[rows].flatten(0, 1)
        return value[rows] if value.ndim > 0 and value.shape[0] == batch and name != SHARED_BIAS else value
    if type(value) in (tuple, list):
        return type(value)(_picked(member, batch, rows) for member in value)
    if isinstance(value, MutableMapping):
        few = copy(value)
        few.update({key: _picked(member, batch, rows, str(key)) for key, member in value.items()})
        return few
    return value


def _row_size(value: Any, rows: int = 1) -> int | None:
    """Return the bytes of what a block gives for so many rows; null where some of it is not known to be of rows."""
    if value is None:
        return 0
    if isinstance(value, torch.Tensor):
        return value.nbytes if value.ndim and value.shape[0] == rows else None
    if type(value) not in (tuple, list):
        return None
    sizes = [_row_size(member, rows) for member in value]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _are_equal(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or (one.shape == other.shape and torch.equal(_bits(one), _bits(other)))
    if type(one) in (tuple, list):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, dict):
        return all(_are_equal(value, other[key]) for key, value in one.items())
    return one is other


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes: 0 and -0 are equal, and are not the same."""
    return values.contiguous().view(torch.uint8)


def _mappings(value: Any) -> list[MutableMapping[Any, Any]]:
    """Return the mappings in a value, itself among them, outer ones first."""
    if isinstance(value, MutableMapping):
        return [value, *(each for member in value.values() for each in _mappings(member))]
    return [each for member in value for each in _mappings(member)] if type(value) in (tuple, list) else []


def _written(mapping: Mapping[Any, Any], before: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what a mapping has that it did not have before."""
    return {key: value for key, value in mapping.items() if key not in before or before[key] is not value}


def _joined(values: Sequence[Any], counts: Sequence[int], back: torch.Tensor) -> Any:
    """Return what several runs gave for the whole batch: `back` has each row's place among all that they ran.

    Raises UnsplittableError for what has no rows and is not the same in all.
    """
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise UnsplittableError
    if isinstance(first, torch.Tensor):
        if all(value.ndim and value.shape[0] == count for value, count in zip(values, counts, strict=True)):
            return torch.cat(list(values))[back]
        if all(torch.equal(value, first) for value in values):
            return first
    elif type(first) in (tuple, list) and len({len(value) for value in values}) == 1:
        return type(first)(_joined(members, counts, back) for members in zip(*values, strict=True))
    elif type(first) is dict and all(value.keys() == first.keys() for value in values):
        return {key: _joined([value[key] for value in values], counts, back) for key in first}
    elif not isinstance(first, tuple | list | Mapping) and all(value == first for value in values):
        return first
    raise UnsplittableError
