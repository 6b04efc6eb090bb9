"""Reads what is wanted of a source, several reads at once, and hands each piece to whom it is for.

Reads run ahead of the arithmetic: while some threads wait for bytes, others work on theirs. What lies side by side
is read at once. Memory is bounded by the number of readers and the size of a block.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from analyzer.base.errors import SourceError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Working on more blocks at once than this only takes turns in the interpreter and grows the buffers.
MAX_WORKERS = 8


class Readable(Protocol):
    """What `stream` reads from: a Source, or two of them."""

    @property
    def readers(self) -> int:
        """How many reads at once are worth it."""
        ...

    @property
    def block_bytes(self) -> int:
        """How many bytes one read should ask for."""
        ...

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """Return the bytes from `start` up to, but not including, `stop`."""
        ...


@dataclass(frozen=True)
class Want:
    """Bytes of a file, `stop` exclusive, and what to do with them, on any thread, once each of `after` has been set."""

    filename: str
    start: int
    stop: int
    use: Callable[[memoryview], None]
    after: tuple[threading.Event, ...] = ()


def stream(source: Readable, wants: Iterable[Want]) -> None:
    """Read everything that is wanted, in order and in parallel, and return when all of it has been used.

    What sets an event must be wanted before what comes after it. The first failure, of a read or of a use, stops the
    others and is raised; so does Ctrl-C. Raises SourceError where bytes cannot be read.
    """
    working = threading.Semaphore(min(MAX_WORKERS, os.cpu_count() or 1))

    def answer(run: list[Want], stopped: threading.Event) -> None:
        start = run[0].start
        data = memoryview(source.read(run[0].filename, start, run[-1].stop))
        for want in run:
            for event in want.after:
                while not event.wait(0.1):
                    if stopped.is_set():
                        return
            with working:
                want.use(data[want.start - start : want.stop - start])

    _run((partial(answer, run) for run in _side_by_side(wants, source.block_bytes)), source.readers)


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], *, threads: int) -> list[Result]:
    """Return what the function makes of each item, in their order. Failures and Ctrl-C are as in `stream`.

    (concurrent.futures would wait, in both cases, for every call that has begun.)
    """
    results: dict[int, Result] = {}

    def call(number: int, item: Item, _: threading.Event) -> None:
        results[number] = function(item)

    _run((partial(call, number, item) for number, item in enumerate(items)), min(threads, len(items)))
    return [results[number] for number in range(len(items))]


def interruptible(function: Callable[[], Result], *, within_s: float | None = None) -> Result:
    """Return what a call returns; Ctrl-C, and what it takes longer than `within_s`, need not wait for its end.

    Raises TimeoutError then. It is for calls of libraries that wait for threads of their own.
    """
    ended: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            ended.put((function(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = ended.get(timeout=within_s)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _run(jobs: Iterator[Callable[[threading.Event], None]], threads: int) -> None:
    """Run jobs, begun in their order and so many at once; each is handed the event that says to wait no longer."""
    taking, stopped = threading.Lock(), threading.Event()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def take() -> Callable[[threading.Event], None] | None:
        with taking:
            return None if stopped.is_set() else next(jobs, None)

    def work() -> None:
        try:
            while job := take():
                job(stopped)
        except BaseException as error:
            stopped.set()
            ended.put(error)
        else:
            ended.put(None)

    # Daemons, so that Ctrl-C need not wait for a server that does not answer.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    try:
        working = sum(1 for worker in workers if _begins(worker))
        if workers and not working:
            raise SourceError("the system gives this process no thread: close other programs, or raise its limits")
        for _ in range(working):
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stopped.set()


def _begins(worker: threading.Thread) -> bool:
    """Start a thread, if the system gives one: with fewer of them the work takes longer."""
    try:
        worker.start()
    except RuntimeError:
        return False
    return True


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
