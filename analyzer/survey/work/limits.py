"""A command in processes of its own, which ends when its time or its memory is used up, with all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_S = 0.1  # between two looks at the memory of the processes
ENDS_S = 5.0  # in which what was killed is over
TELLS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()  # psutil would ask every process there is
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
    began, members = time.monotonic(), {psutil.Process(process.pid)}
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
            members = with_begun(members)
            if limits.memory is not None and memory_of(members) > limits.memory:
                return MEMORY
    finally:
        end_all(process, members)


def memory_of(processes: Iterable[psutil.Process]) -> int:
    """Return the bytes that processes hold, without what they map of files."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            info = process.memory_info()
            total += info.rss - getattr(info, "shared", 0)
    return total


def with_begun(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Return those of these processes that still run, with all that they have begun.

    Who was met while who began it was there is kept when that is no more.
    """
    found = {process for process in processes if process.is_running()}
    to_ask = list(found)
    while to_ask:
        new = _begun_by(to_ask.pop()) - found
        found |= new
        to_ask += new
    return found


def end_all(process: subprocess.Popen[bytes], members: Iterable[psutil.Process]) -> None:
    """End a process, those of its session, and those that were met with it, whatever they do."""
    others = {each for each in with_begun(members) if each.pid != process.pid}
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # of a session of its own, also where it has ended itself
    for each in others:
        with suppress(psutil.Error):
            each.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(others, timeout=ENDS_S)  # what they held is free for the next
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _begun_by(process: psutil.Process) -> set[psutil.Process]:
    """Return the processes that one has begun."""
    found = set()
    with suppress(OSError, psutil.Error):
        if not TELLS_CHILDREN:
            return set(process.children())
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with suppress(OSError, psutil.Error):  # a thread or a process that has just ended
                found |= {psutil.Process(int(pid)) for pid in path.read_text().split()}
    return found
