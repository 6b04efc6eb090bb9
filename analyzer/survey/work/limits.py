"""A command in processes of its own, which ends when its time or its memory is used up, with all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

LOOK_S = 0.1  # between two looks at the memory of the processes
ENDS_S = 5.0  # in which what was killed is over
TIME, MEMORY, GIVEN_UP = "time", "memory", "given up"


@dataclass(frozen=True)
class Limits:
    """What a command may use: bytes of memory, of all its processes, and seconds; null for as much as there is."""

    memory: int | None = None
    seconds: float | None = None


def run_within(
    command: Sequence[str],
    message: bytes,
    limits: Limits,
    *,
    environment: Mapping[str, str],
    stopped: threading.Event,
    beat: Callable[[], object] = lambda: None,
) -> int | str:
    """Run a command that reads `message`; returns its status, negative for a signal, or which limit ended it.

    Its stdin stays open for as long as this process lives, so that it can tell when this is no more. `beat` is called
    all the while; `stopped` ends the command as a limit does.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("SUPERWEIGHT_DEBUG") == "1" else subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,  # a Ctrl-C is for this process alone, which decides what it means
    )
    began = time.monotonic()
    try:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(message)
            process.stdin.flush()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=LOOK_S)
            beat()
            if stopped.is_set():
                return GIVEN_UP
            if limits.seconds is not None and time.monotonic() - began > limits.seconds:
                return TIME
            if limits.memory is not None and memory_of(process.pid) > limits.memory:
                return MEMORY
    finally:
        end_all(process)


def memory_of(pid: int) -> int:
    """Return the bytes that a process and those below it hold, without what they map of files."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.Error):
            info = process.memory_info()
            total += info.rss - getattr(info, "shared", 0)
    return total


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has begun, whatever they do."""
    below = _tree(process.pid)[1:]
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # of a session of its own, also where it has ended itself
    for each in below:
        with suppress(psutil.Error):
            each.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(below, timeout=ENDS_S)  # what they held is free for the next
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []
