"""How far a job is: counted in bytes, and as bars on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

Progress = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and of how much."""
TOLD_AFTER_S, TOLD_EVERY_S = 60.0, 600.0
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
    """Yield a progress function that draws a bar on stderr for each thing done.

    Where stderr is no terminal, it says in lines how long what takes minutes will still take.
    """
    if quiet or not sys.stderr.isatty():
        _without_the_hubs()
        yield (lambda *_: None) if quiet else Estimates(lambda line: print(line, file=sys.stderr))
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


class Estimates:
    """A progress function that tells how long a thing will still take: once that can be told, then now and then."""

    def __init__(self, tell: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`tell` is handed each line; `clock` returns seconds."""
        self._tell, self._clock = tell, clock
        self._began: dict[str, tuple[float, int]] = {}
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """See Progress."""
        now = self._clock()
        began, first = self._began.setdefault(what, (now, done))
        if now - began < TOLD_AFTER_S or now < self._next or done <= first:
            return
        left = (now - began) * (total - done) / (done - first)
        if left > TOLD_AFTER_S:
            self._tell(f"{what}: {done / total:.0%} done, about {duration(left)} left")
            self._next = now + TOLD_EVERY_S


def duration(seconds: float) -> str:
    """Return a time in the unit in which people think of it."""
    for unit, name in ((86400, "days"), (3600, "hours")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(1, round(seconds / 60))} min"


def _without_the_hubs() -> None:
    """Let the Hub's client draw no bars of its own, be it imported already or later."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import utils

        utils.disable_progress_bars()
