"""How far a job is: counted in bytes, and as bars on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

Progress = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and of how much."""
IN_BYTES = ("scan", "hash")


def counted(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Return what adds up the bytes that it is told of, and shows how many of the total are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count  # from several threads; a lost update would only misdraw the bar
        progress(what, done, total)

    return advance


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Yield a progress function that draws a bar on stderr for each thing done, if stderr is a terminal."""
    if quiet:  # downloads draw the Hub client's own bars, which must be told before it is imported
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from tqdm import tqdm

    bars: dict[str, tqdm[NoReturn]] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            in_bytes = what in IN_BYTES
            bars[what] = tqdm(total=total, desc=what, unit="B" if in_bytes else "", unit_scale=in_bytes, leave=False)
        bars[what].update(done - bars[what].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
