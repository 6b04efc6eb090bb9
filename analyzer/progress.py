"""Progress bars on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
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
            bars[what] = tqdm(
                total=total, desc=what, unit="B" if what == "scan" else "", unit_scale=what == "scan", leave=False
            )
        bars[what].update(done - bars[what].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
