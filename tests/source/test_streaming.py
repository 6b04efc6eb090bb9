"""streaming.py, on a source in memory: what is read, in which order, how much at once, and what stops it."""

import gc
import os
import signal
import threading
import time
import weakref
from contextlib import contextmanager

import pytest

from analyzer.base.errors import SourceError
from analyzer.source.streaming import MAX_WORKERS, Want, in_parallel, interruptible, stream

SOON = 10  # seconds within which another thread must have come along, however slow the machine


class Block(bytearray):
    """Bytes that can be watched while they live."""


class Memory:
    """A source whose files are in memory; `before(start)` is called in each read."""

    model, revision, commit = "memory", None, None

    def __init__(self, files, *, readers=4, block_bytes=8, before=lambda start: None):
        self.files, self.readers, self.block_bytes, self.before = files, readers, block_bytes, before
        self.sizes = {name: len(data) for name, data in files.items()}
        self.reads, self.alive, self.most_alive = [], 0, 0
        self._counting = threading.Lock()

    def read(self, filename, start, stop):
        with self._counting:
            self.reads.append((filename, start, stop))
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
        self.before(start)
        block = Block(self.files[filename][start:stop])
        weakref.finalize(block, self._gone)
        return block

    def _gone(self):
        with self._counting:
            self.alive -= 1

    def content(self, filename):
        return None

    def folder(self, weights):
        raise NotImplementedError


def pieces(size, *, count, filename="a", use=lambda data: None, **options):
    """Return wishes for so many pieces that do not touch."""
    return [Want(filename, i * (size + 1), i * (size + 1) + size, use, **options) for i in range(count)]


@contextmanager
def all_threads_end():
    """Wait for the threads that were begun inside, which may go on after the call that began them has failed."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)
        assert not thread.is_alive()


def test_one_reader_goes_in_order():
    source = Memory({"a": bytes(range(100)), "b": bytes(range(100, 200))}, readers=1)
    used = []
    wants = [Want(name, start, start + 2, lambda data: used.append(bytes(data))) for name in "ba" for start in (7, 3)]
    stream(source, wants)
    assert used == [bytes([107, 108]), bytes([103, 104]), bytes([7, 8]), bytes([3, 4])]
    assert source.reads == [("b", 7, 9), ("b", 3, 5), ("a", 7, 9), ("a", 3, 5)]


def test_many_readers_use_everything_once():
    data = os.urandom(3000)
    source = Memory({"a": data}, readers=16)
    used = []
    stream(source, [Want("a", i, i + 3, lambda piece, i=i: used.append((i, bytes(piece)))) for i in range(0, 3000, 5)])
    assert sorted(used) == [(i, data[i : i + 3]) for i in range(0, 3000, 5)]
    assert sorted(source.reads) == [("a", i, i + 3) for i in range(0, 3000, 5)]


def test_nothing_wanted():
    source = Memory({})
    stream(source, [])
    assert source.reads == []


@pytest.mark.parametrize(
    ("wanted", "reads"),
    [
        ([(0, 3), (3, 5)], [(0, 5)]),
        ([(0, 3), (3, 8), (8, 9)], [(0, 8), (8, 9)]),  # as much as a block holds
        ([(0, 3), (4, 6)], [(0, 3), (4, 6)]),  # a gap is not read
        ([(3, 5), (0, 3)], [(3, 5), (0, 3)]),
        ([(0, 3), (2, 5)], [(0, 3), (2, 5)]),  # overlapping
        ([(0, 20), (20, 22)], [(0, 20), (20, 22)]),  # larger than a block: that is for who wants it to decide
        ([(0, 4), (4, 8), (8, 12), (12, 16)], [(0, 8), (8, 16)]),
        ([(0, 3), (3, 3), (3, 5)], [(0, 5)]),
    ],
)
def test_what_lies_side_by_side_is_read_at_once(wanted, reads):
    data = os.urandom(32)
    source = Memory({"a": data, "b": data}, readers=1)
    used = []
    for name in "ab":
        stream(source, [Want(name, *ends, lambda piece: used.append(bytes(piece))) for ends in wanted])
    assert used == 2 * [data[start:stop] for start, stop in wanted]
    assert source.reads == [(name, start, stop) for name in "ab" for start, stop in reads]


def test_the_end_of_one_file_is_not_beside_the_start_of_another():
    source = Memory({"a": bytes(4), "b": bytes(8)}, readers=1)
    stream(source, [Want("a", 0, 4, lambda data: None), Want("b", 4, 8, lambda data: None)])
    assert source.reads == [("a", 0, 4), ("b", 4, 8)]


@pytest.mark.parametrize("readers", [1, 2, 8])
def test_what_comes_after_something_waits_for_it(readers):
    second_was_read, done = threading.Event(), threading.Event()

    def before(start):
        if start == 10:
            second_was_read.set()
        elif start == 0 and readers > 1:
            assert second_was_read.wait(SOON)  # so its use would come first

    source = Memory({"a": bytes(40)}, readers=readers, before=before)
    used = []

    def first(data):
        used.append("first")
        done.set()

    stream(
        source,
        [
            Want("a", 0, 4, first),
            Want("a", 10, 14, lambda data: used.append("second"), after=(done,)),
            Want("a", 14, 18, lambda data: used.append("third"), after=(done,)),  # in one read with it
        ],
    )
    assert used == ["first", "second", "third"]


def test_reads_run_ahead_of_what_is_done_with_them():
    begun = threading.Semaphore(0)
    source = Memory({"a": bytes(100)}, readers=4, before=lambda start: begun.release())

    def use(data):
        for _ in range(4):  # this read, and those of the other readers
            assert begun.acquire(timeout=SOON)

    stream(source, pieces(4, count=4, use=use)[:1] + pieces(4, count=4)[1:])
    assert len(source.reads) == 4


@pytest.mark.parametrize("readers", [1, 3, 16])
def test_memory_is_bounded_by_the_readers(readers):
    source = Memory({"a": bytes(5000)}, readers=readers)
    stream(source, pieces(8, count=300, use=lambda data: time.sleep(0.0003)))
    gc.collect()
    assert source.most_alive <= readers
    assert source.alive == 0


def test_no_more_work_at_once_than_there_are_cores():
    counting, at_once, most = threading.Lock(), 0, 0

    def use(data):
        nonlocal at_once, most
        with counting:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.001)
        with counting:
            at_once -= 1

    stream(Memory({"a": bytes(5000)}, readers=16), pieces(4, count=100, use=use))
    assert most <= min(MAX_WORKERS, os.cpu_count())


@pytest.mark.parametrize("readers", [1, 4])
def test_the_first_failure_of_a_read_stops_the_others(readers):
    def before(start):
        if start == 20:
            raise SourceError("the disk is gone")
        if start > 20:
            time.sleep(0.05)

    source = Memory({"a": bytes(5000)}, readers=readers, before=before)
    with all_threads_end(), pytest.raises(SourceError, match="the disk is gone"):
        stream(source, pieces(4, count=900))
    assert len(source.reads) <= 5 + 2 * readers


def test_a_failure_in_what_is_done_stops_the_others():
    source = Memory({"a": bytes(5000)}, readers=4)

    def use(data):
        raise ValueError("wrong scales")

    with all_threads_end(), pytest.raises(ValueError, match="wrong scales"):
        stream(source, [Want("a", 0, 4, use), *pieces(4, count=900, use=lambda data: time.sleep(0.05))])
    assert len(source.reads) <= 2 * 4


def test_a_failure_in_what_is_wanted_is_raised():
    def wants():
        yield Want("a", 0, 4, used.append)
        raise KeyError("no such tensor")

    used = []
    with all_threads_end(), pytest.raises(KeyError, match="no such tensor"):
        stream(Memory({"a": bytes(8)}), wants())


@pytest.mark.parametrize("size", [4, 8])
def test_what_waits_for_something_that_failed_is_never_used(size):
    waiting, ready = threading.Event(), threading.Event()

    def before(start):
        if start == 0:
            assert waiting.wait(SOON)
            raise SourceError("the scales cannot be read")

    used = []
    source = Memory({"a": bytes(40)}, readers=2, before=before)
    wants = [
        Want("a", 0, 4, lambda data: ready.set()),
        Want("a", 10, 14, lambda data: waiting.set()),
        Want("a", 14, 10 + size, lambda data: used.append(bytes(data)), after=(ready,)),
    ]
    with all_threads_end(), pytest.raises(SourceError, match="the scales cannot be read"):
        stream(source, wants)
    assert used == []


@pytest.mark.parametrize("where", ["stream", "in_parallel"])
def test_ctrl_c_does_not_wait_for_what_hangs(where):
    hanging, release = threading.Event(), threading.Event()

    def hang(which):
        begun.append(which)
        hanging.set()
        assert release.wait(SOON)

    def interrupt():
        assert hanging.wait(SOON)
        time.sleep(0.05)  # until the main thread only waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    begun = []
    with all_threads_end():
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                if where == "stream":
                    stream(Memory({"a": bytes(100)}, readers=2, before=hang), pieces(4, count=9))
                else:
                    in_parallel(hang, range(9), threads=2)
        finally:
            release.set()
    assert len(begun) <= 2  # nor does the rest begin


def test_in_parallel_keeps_the_order():
    def square(number):
        time.sleep(0.001 * (7 - number % 7))
        return number * number

    assert in_parallel(square, range(50), threads=8) == [number * number for number in range(50)]
    assert in_parallel(square, [], threads=8) == []
    assert in_parallel(square, [3], threads=8) == [9]
    assert in_parallel(lambda nothing: None, [1, 2], threads=1) == [None, None]


def test_in_parallel_fails_at_once():
    calls, release = [], threading.Event()

    def call(number):
        calls.append(number)
        if number == 3:
            raise SourceError("the third is gone")
        if number > 3:
            assert release.wait(SOON)

    with all_threads_end():
        try:
            with pytest.raises(SourceError, match="the third is gone"):
                in_parallel(call, range(1000), threads=4)
        finally:
            release.set()
    assert len(calls) <= 3 + 2 * 4


def test_fewer_threads_than_were_wanted_are_enough_and_none_is_said(monkeypatch):
    begin, begun = threading.Thread.start, []

    def limited(thread):
        if len(begun) == most:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    most = 2
    assert in_parallel(lambda number: number * 2, range(50), threads=8) == list(range(0, 100, 2))
    begun.clear()
    most = 0
    with pytest.raises(SourceError, match="gives this process no thread: close other programs, or raise its limits"):
        in_parallel(lambda number: number, range(50), threads=8)


def test_a_call_that_can_be_left_returns_raises_and_ends_in_time():
    assert interruptible(lambda: 7) == 7
    with pytest.raises(KeyError, match="own"):
        interruptible(lambda: {}["own"])
    hanging = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        interruptible(hanging.wait, within_s=0.1)
    assert time.monotonic() - began < SOON
    hanging.set()
