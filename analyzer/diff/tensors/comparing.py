"""The job behind `diff --all-tensors`: every tensor of two versions, in one pass over what they do not share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike, fspath

from analyzer.base.errors import ResultError, shown
from analyzer.base.progress import Progress, counted
from analyzer.base.text import name_at
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.diff.changes import comparable
from analyzer.diff.tensors.contents import Held, held_by
from analyzer.diff.tensors.records import TensorChange, TensorDiff
from analyzer.diff.tensors.sums import Counting, Summing, joined
from analyzer.diff.together import NEW, OLD, Both, contents_of, in_step
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.source.opening import existing_file, open_model
from analyzer.source.single_file import GGUF_SUFFIX
from analyzer.source.streaming import Want, stream

Two = tuple[Held | None, Held | None]


def compare_tensors(
    old: str | PathLike[str],
    new: str | PathLike[str],
    *,
    expect: Sequence[str] = (),
    token: str | None = None,
    progress: Progress = lambda *_: None,
) -> TensorDiff:
    """Compare all tensors of two models by name; what both have in files of the same content is not read.

    Both versions of a tensor are read in step, so that memory is bounded by blocks. `expect` are patterns of the names
    of what may differ. Raises ResultError where one names nothing, or the two have no name in common; AnalyzerError
    where a model cannot be read.
    """
    checkpoints = (_opened(fspath(old), token), _opened(fspath(new), token))
    held = (held_by(checkpoints[OLD]), held_by(checkpoints[NEW]))
    pairs = _paired(*held)
    compared = {name: _without_reading(name, *two) for name, two in pairs.items()}
    _check(checkpoints, pairs, compared, expect)
    files = [
        {checkpoint.tensors[part].filename for two in pairs.values() if (one := two[side]) for part in one.stored}
        for side, checkpoint in enumerate(checkpoints)
    ]
    known = contents_of(checkpoints, files, progress)
    total = sum(one.stored_bytes for name, two in pairs.items() if compared[name].state == "" for one in two if one)
    advance = counted(progress, "compare", total)
    shared = 0

    def wants() -> Iterator[Want]:
        nonlocal shared
        for name, (one, other) in pairs.items():
            if compared[name].state or one is None or other is None:
                continue
            places = [
                _places(each, checkpoint, contents)
                for each, checkpoint, contents in zip((one, other), checkpoints, known, strict=True)
            ]
            if places[OLD] is not None and places[OLD] == places[NEW]:
                compared[name] = replace(compared[name], state="same file")
                shared += other.stored_bytes
                advance(one.stored_bytes + other.stored_bytes)
            else:
                reading = _Reading(one, other, compared[name], partial(compared.__setitem__, name))
                yield from reading.wants(checkpoints, advance)

    stream(Both(checkpoints), wants())
    for checkpoint in checkpoints:
        checkpoint.source.check_unchanged()
    tensors = tuple(compared.values())
    names = [name_at(each.source.model, each.source.revision) for each in checkpoints]
    return TensorDiff(
        old=names[OLD],
        new=names[NEW],
        old_commit=checkpoints[OLD].source.commit,
        new_commit=checkpoints[NEW].source.commit,
        expect=tuple(expect),
        tensors=tensors,
        unexpected=tuple(each.name for each in tensors if each.differs and not each.named_by(expect)),
        notes=tuple(dict.fromkeys(note for checkpoint in checkpoints for note in checkpoint.notes)),
        bytes_read=sum(checkpoint.bytes_read for checkpoint in checkpoints),
        bytes_shared=shared,
    )


def _opened(name: str, token: str | None) -> Checkpoint:
    if name.endswith(".json") or (existing_file(name) is not None and not name.endswith(GGUF_SUFFIX)):
        raise ResultError(f"{shown(name)} is no model: --all-tensors compares models, and no saved results")
    return Checkpoint(open_model(name, token=token))


def _paired(old: Mapping[str, Held], new: Mapping[str, Held]) -> dict[str, Two]:
    """Return what both hold by its name, in the order of the old one's files; what only the new one holds at the end.

    A quantized matrix and a plain parameter without `.weight` (of fused experts) are one.
    """
    plainly = {
        name: bare
        for one, other in ((old, new), (new, old))
        for name in one
        if name not in other and (bare := name.removesuffix(".weight")) in other and bare not in one
    }
    named = [{plainly.get(name, name): each for name, each in side.items()} for side in (old, new)]
    return {name: (named[OLD].get(name), named[NEW].get(name)) for name in {**named[OLD], **named[NEW]}}


def _without_reading(name: str, old: Held | None, new: Held | None) -> TensorChange:
    """Return what is known of a tensor before it is read; its state is empty where it has to be."""
    stored = tuple(dict.fromkeys(each for one in (old, new) if one for each in one.stored))
    change = TensorChange(
        name,
        stored,
        "",
        old.shape if old else None,
        new.shape if new else None,
        old.dtype if old else None,
        new.dtype if new else None,
        note="; ".join(dict.fromkeys(one.why for one in (old, new) if one and one.why)) or None,
    )
    if old is None or new is None:
        return replace(change, state="removed" if new is None else "added")
    if old.shape != new.shape:
        return replace(change, state="reshaped")
    if 0 in old.shape:
        return replace(change, state="same" if old.dtype == new.dtype else "dtype changed")
    if (old.raw or new.raw) and (old.dtype, old.stored_bytes) != (new.dtype, new.stored_bytes):
        return replace(change, state="not compared", note=change.note or "stored in other ways, one of them not read")
    if _in_parts(old, new) is None:
        return replace(change, state="not compared", note="one is stored the other way round")
    return change


def _in_parts(old: Held, new: Held) -> list[tuple[Matrix, Matrix]] | None:
    """Return the matrices of both in pairs, null where they cannot be compared from their tiles."""
    count = max(len(old.matrices), len(new.matrices))
    parts = list(zip(old.in_parts(count), new.in_parts(count), strict=False))
    whole = len(parts) == count and all(comparable(*pair) for pair in parts)
    return parts if whole else None


def _check(
    checkpoints: Sequence[Checkpoint],
    pairs: Mapping[str, Two],
    compared: Mapping[str, TensorChange],
    expect: Sequence[str],
) -> None:
    """Raise ResultError where a pattern names nothing, or the two have nothing to compare."""
    if not any(old and new for old, new in pairs.values()):
        names = [shown(checkpoint.source.model, 80) for checkpoint in checkpoints]
        why = ": a GGUF file has names of its own" if any(checkpoint.metadata for checkpoint in checkpoints) else ""
        raise ResultError(
            f"{names[OLD]} and {names[NEW]} have no tensor of the same name{why}; without --all-tensors their down "
            "projections are compared by place"
        )
    for pattern in expect:
        if not any(each.named_by([pattern]) for each in compared.values()):
            first = shown(next(iter(pairs)), 80)
            raise ResultError(f"--expect '{shown(pattern, 80)}' names no tensor of either: they are named as {first}")


def _places(held: Held, checkpoint: Checkpoint, contents: Mapping[str, str | None]) -> list[object] | None:
    """Return what tells a tensor's bytes and how they are read, null where its files have no content that is known."""
    places: list[object] = [(repr(matrix.encoding), matrix.parts) for matrix in held.matrices]
    for name in held.stored:
        tensor = checkpoint.tensors[name]
        if (content := contents[tensor.filename]) is None:
            return None
        places.append((content, tensor.record))
    return places


class _Reading:
    """One tensor on its way."""

    def __init__(self, old: Held, new: Held, change: TensorChange, finish: Callable[[TensorChange], None]) -> None:
        self._change, self._finish = change, finish
        self._parts = _in_parts(old, new) or []
        kind = Counting if old.raw else Summing
        self._summing = [kind(*pair) for pair in self._parts]
        self._left, self._finishing = 2 * len(self._parts), threading.Lock()

    def wants(self, checkpoints: Sequence[Checkpoint], progress: Callable[[int], object]) -> Iterator[Want]:
        """Yield the wishes to read both versions in step."""
        for pair, summing in zip(self._parts, self._summing, strict=True):
            sides = [
                checkpoint.read_matrix(matrix, _watch(summing, side), done=self._done, progress=progress)
                for side, (checkpoint, matrix) in enumerate(zip(checkpoints, pair, strict=True))
            ]
            yield from in_step(sides, [matrix.stored_bytes for matrix in pair])

    def _done(self) -> None:
        with self._finishing:
            self._left -= 1
            if self._left:
                return
        sums = joined([each.sums for each in self._summing])
        change = self._change
        otherwise = "dtype changed" if change.old_dtype != change.new_dtype else "same"
        counted = isinstance(self._summing[0], Counting)
        self._finish(
            replace(
                change,
                state="changed" if sums.equal < sums.numbers else otherwise,
                relative_change=None if counted else sums.relative_change,
                cosine=None if counted else sums.cosine,
                unchanged=sums.unchanged,
                nonfinite=None if counted else sums.nonfinite,
            )
        )


def _watch(summing: Summing, side: int) -> Callable[[int, Tile, Unsigned], None]:
    return lambda _, tile, bits: summing.take(side, tile, bits)
