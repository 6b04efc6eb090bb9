"""Reads what is wanted of a source, several reads at once, and hands each piece to whom it is for.

Reads run ahead of the arithmetic: while some threads wait for bytes, others work on theirs. What lies side by side
is read at once. Memory is bounded by the number of readers and the size of a block.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from analyzer.source import Source

# Working on more blocks at once than this only takes turns in the interpreter and grows the buffers.
MAX_WORKERS = 8


@dataclass(frozen=True)
class Want:
    """Bytes of a file, `stop` exclusive, and what to do with them, on any thread, once each of `after` has been set."""

    filename: str
    start: int
    stop: int
    use: Callable[[memoryview], None]
    after: tuple[threading.Event, ...] = ()


def stream(source: Source, wants: Iterable[Want]) -> None:
    """Read everything that is wanted, in order and in parallel, and return when all of it has been used.

    The first failure, of a read or of a use, stops the others and is raised; so does Ctrl-C. Raises SourceError
    where bytes cannot be read.
    """
    reads = _side_by_side(wants, source.block_bytes)
    taking, stop = threading.Lock(), threading.Event()
    working = threading.Semaphore(min(MAX_WORKERS, os.cpu_count() or 1))
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def take() -> list[Want] | None:
        with taking:
            return None if stop.is_set() else next(reads, None)

    def work() -> None:
        try:
            while read := take():
                start = read[0].start
                data = memoryview(source.read(read[0].filename, start, read[-1].stop))
                for want in read:
                    for event in want.after:
                        while not event.wait(0.1):
                            if stop.is_set():
                                break
                    with working:
                        want.use(data[want.start - start : want.stop - start])
        except BaseException as error:
            stop.set()
            ended.put(error)
        else:
            ended.put(None)

    # Daemons, so that Ctrl-C need not wait for a server that does not answer.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(source.readers)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stop.set()


def _side_by_side(wants: Iterable[Want], block_bytes: int) -> Iterator[list[Want]]:
    """Yield runs of wants that one read can answer: each starts where the one before it stops."""
    run: list[Want] = []
    for want in wants:
        adjacent = run and (want.filename, want.start) == (run[-1].filename, run[-1].stop)
        if adjacent and want.stop - run[0].start <= block_bytes:
            run.append(want)
            continue
        if run:
            yield run
        run = [want]
    if run:
        yield run
