"""The engine that runs units on Ray, a task each: on a cluster or on a Ray of its own. All that imports ray is here."""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from analyzer import __version__
from analyzer.base.errors import AnalyzerError, SurveyError, shown
from analyzer.base.text import byte_size
from analyzer.survey.schedule import MOST_BYTES
from analyzer.survey.store import Folder
from analyzer.survey.units import FAILED, MEMORY, STOPPED, Outcome, Unit
from analyzer.survey.work.attempts import Terms, attempt
from analyzer.survey.work.local import cores

RETRIES = 3  # of a task whose machine or process is lost, by Ray itself
STORE_BYTES = 80_000_000  # of a Ray of its own, whose store has outcomes in it alone; it takes no less than 75 MiB
SCAN_BYTES = 500_000_000  # of memory that a scan is given
RUN_BYTES, RUN_PART = 2_000_000_000, 20  # a model that is run: torch, and so small a part of what it reads at once

ANSWERS_S = 10.0  # in which a cluster does

Machine = Mapping[str, float]
"""What a machine of a cluster has: cpu, gpu, and bytes of memory."""


class RayEngine:
    """Runs units on the Ray that this process is connected to; see ray_engine."""

    def __init__(self, ray: Any, out: Path, terms: Terms, *, do: str, device: str) -> None:
        machines = [
            {name.lower(): amount for name, amount in node["Resources"].items()}
            for node in ray.nodes()
            if node["Alive"]
        ]
        self._ask, self.slots = ask_for(do, device, machines)
        self.most_bytes = MOST_BYTES * len(machines)
        self._most_memory = int(max(fitting(self._ask, machines), key=lambda each: each["memory"])["memory"])
        self._ray, self._out, self._terms = ray, out.resolve(), terms
        self._task = ray.remote(max_retries=RETRIES)(_attempt)
        self._running: dict[Any, Unit] = {}
        self._refused: deque[Outcome] = deque()
        self._stopped = False

    def start(self, unit: Unit) -> None:
        """See Engine.start; what no machine has memory for fails at once."""
        memory = self._terms.limits.memory or memory_for(unit)
        if memory > self._most_memory:
            line = (
                f"no machine of the Ray cluster has the {byte_size(memory)} that it is given, the largest has "
                f"{byte_size(self._most_memory)}: give --max-memory, or a cluster with more, and --retry-failed"
            )
            self._refused.append(Outcome(unit.key, FAILED, Folder(self._out).save_failure(unit, MEMORY, line)))
            return
        threads = os.environ.get("OMP_NUM_THREADS")
        task = self._task.options(num_cpus=self._ask["cpu"], num_gpus=self._ask["gpu"], memory=memory)
        self._running[task.remote(self._out, unit, self._terms, __version__, threads)] = unit

    def ended(self, within_s: float) -> Outcome | None:
        """See Engine.ended."""
        if self._refused:
            return self._refused.popleft()
        if not self._running:
            time.sleep(within_s)
            return None
        done, _ = self._ray.wait(list(self._running), timeout=within_s)
        return self._outcome(done[0], self._running.pop(done[0])) if done else None

    def stop(self) -> None:
        """See Engine.stop."""
        self._stopped = True
        for task in self._running:
            self._ray.cancel(task)

    def _outcome(self, task: Any, unit: Unit) -> Outcome:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(task)
            return outcome
        except errors.RayError as error:
            if self._stopped:
                return Outcome(unit.key, STOPPED)
            cause = getattr(error, "cause", None)
            if isinstance(cause, AnalyzerError):
                raise cause from error
            if not isinstance(error, (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)):
                reason = shown(str(error).strip().rpartition("\n")[2], 200)
                raise SurveyError(
                    f"a machine of the Ray cluster cannot work on {shown(unit.model)} ({reason}): have superweight "
                    f"{__version__} installed on each"
                ) from error
            line = f"its process or machine was lost {RETRIES + 1} times, as a rule for want of memory: give it more"
            return Outcome(unit.key, FAILED, Folder(self._out).save_failure(unit, MEMORY, line))


@contextmanager
def ray_engine(out: Path, terms: Terms, *, do: str, device: str, address: str | None) -> Iterator[RayEngine]:
    """Connect to the Ray at this address, or start one on this machine; yields the engine of a kind of job.

    Raises SurveyError where ray is missing, no cluster answers, or none of its machines can do the job.
    """
    # Read as ray is imported: it would send figures home, under `uv run` pack this folder up for its workers, and try
    # for ever what is ended for want of memory.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        import ray
    except ImportError as error:
        raise SurveyError("--engine ray needs ray: `pip install ray` beside superweight") from error
    with tempfile.TemporaryDirectory(prefix="superweight-ray-") as store:  # for /dev/shm may be small, or missing
        own: dict[str, Any] = {
            "num_cpus": cores(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_plasma_directory": store,
        }
        try:
            if address and re.fullmatch(r"[^/]+:\d+", address):  # ray itself would try for minutes, and end the process
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_S).close()
            # "local" is told, since ray would else look for an address in the environment.
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, ImportError) as error:
            what = f"reach the Ray cluster at {shown(address)}" if address else "start a Ray on this machine"
            raise SurveyError(f"cannot {what}: {shown(str(error).strip().partition(chr(10))[0], 200)}") from error
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # ray says there what its logs have too
            try:
                yield RayEngine(ray, out, terms, do=do, device=device)
            finally:
                ray.shutdown()


def ask_for(do: str, device: str, machines: Sequence[Machine]) -> tuple[Machine, int]:
    """Return what a unit of a kind of job asks a machine for beside memory, and how many units that allows at once.

    A scan asks for a core; a model that is run for a GPU or, where it runs on a CPU, for the largest machine's cores.
    Raises SurveyError where no machine has that.

    >>> ask_for("verify", "auto", [{"cpu": 4}, {"cpu": 8, "gpu": 2}])
    ({'cpu': 1, 'gpu': 1}, 2)
    """
    gpus = device == "cuda" or (device == "auto" and any(each.get("gpu", 0) >= 1 for each in machines))
    if do == "scan":
        ask = {"cpu": 1, "gpu": 0}
    elif device.startswith("cuda:"):
        raise SurveyError(f"Ray says which GPU a model has: give --device cuda in place of {device}")
    elif gpus:
        ask = {"cpu": 1, "gpu": 1}
    else:
        ask = {"cpu": max(1, int(max((each.get("cpu", 0) for each in machines), default=0))), "gpu": 0}
    slots = sum(int(min(each.get(name, 0) // count for name, count in ask.items() if count)) for each in machines)
    if not slots:
        what = "a GPU" if ask["gpu"] else "a CPU"
        raise SurveyError(f"no machine of the Ray cluster has {what} to give: take another")
    return ask, slots


def fitting(ask: Machine, machines: Sequence[Machine]) -> list[Machine]:
    """Return the machines that have what is asked for."""
    return [each for each in machines if all(each.get(name, 0) >= count for name, count in ask.items())]


def memory_for(unit: Unit) -> int:
    """Return the bytes of memory that a unit is given where nobody says."""
    return SCAN_BYTES if unit.do == "scan" else RUN_BYTES + unit.needs // RUN_PART


def _attempt(out: Path, unit: Unit, terms: Terms, version: str, threads: str | None) -> Outcome:
    """Do a unit on a machine of the cluster. Raises SurveyError where this machine is not made for it."""
    if version != __version__:
        raise SurveyError(f"{socket.gethostname()} has superweight {__version__}, not {version}: install the same")
    if not out.is_dir():
        raise SurveyError(f"{socket.gethostname()} has no {shown(out)}: give --out a folder that all machines share")
    if threads is None:  # Ray sets it, and what is computed should not depend on who runs it
        os.environ.pop("OMP_NUM_THREADS", None)
    return attempt(out, unit, terms, threading.Event(), {} if threads is None else {"OMP_NUM_THREADS": threads})
