"""The process of one unit: does its job on its model, and writes what was found, or why there is nothing, to its file.

It is run as `python -m analyzer.survey.work.job`, with a message of JSON in one line on stdin, and ends when that is
closed: then who started it is no more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from analyzer.base.errors import (
    AnalyzerError,
    GatedError,
    GoneError,
    NetworkError,
    SurveyError,
    is_out_of_memory,
    reason_of,
    shown,
)
from analyzer.base.records import plain
from analyzer.base.text import name_at
from analyzer.survey.store import Folder
from analyzer.survey.units import BUG, GATED, GONE, MEMORY, NETWORK, PIN, UNSUPPORTED, Job, Unit
from analyzer.survey.work.limits import with_begun

OK, HAS_FAILED, NO_ROOM = 0, 3, 4
"""The process's status: what it was to write is there; a failure is there; the disk or the folder takes nothing."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAX_LINE = 1000
SIZES = ("num_layers", "hidden_size", "intermediate_size")


def main() -> None:
    """Do the job of a message on stdin, and end the process with what became of it."""
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    unit = Unit(**message["unit"])
    status = do_unit(Folder(Path(message["out"])), unit, use_cache=message["use_cache"])
    sys.stdout.flush()
    os._exit(status)  # threads of what was given up are not waited for


def do_unit(folder: Folder, unit: Unit, *, use_cache: bool = True) -> int:
    """Do a unit's job and write its file; returns OK, HAS_FAILED or NO_ROOM."""
    try:
        try:
            began = time.perf_counter()
            result = _result(folder, unit, use_cache)
            folder.save_result(unit, {"seconds": round(time.perf_counter() - began, 3), "result": result})
            return OK
        except Exception as error:
            if _has_no_room(error):
                return NO_ROOM
            if os.environ.get("SUPERWEIGHT_DEBUG") == "1":
                sys.excepthook(*sys.exc_info())
            folder.save_failure(unit, *failure_of(error))
            return HAS_FAILED
    except (OSError, SurveyError):
        return NO_ROOM


def failure_of(error: BaseException) -> tuple[str, str]:
    """Return the class of an error, and its line.

    >>> failure_of(GoneError("there is no such model"))
    ('gone', 'there is no such model')
    """
    if is_out_of_memory(error):
        return MEMORY, reason_of(error)
    line = shown(error, MAX_LINE)
    for kind, of in ((GoneError, GONE), (GatedError, GATED), (NetworkError, NETWORK), (AnalyzerError, UNSUPPORTED)):
        if isinstance(error, kind):
            return of, line
    return BUG, f"this is a bug in superweight ({type(error).__name__}: {shown(error)}): report it"


def _result(folder: Folder, unit: Unit, use_cache: bool) -> dict[str, Any]:
    from analyzer.source.opening import open_model

    if unit.do == PIN:
        return pin(unit.name)
    source = open_model(unit.name)
    if unit.state is not None and state_of(source) != unit.state:
        raise GoneError(f"{unit.model} has changed since it was planned: plan it again, or give --again")
    if source.commit != unit.commit:
        raise GoneError(f"{unit.model} is at commit {source.commit}, not at {unit.commit}, which was planned")
    source.revision = unit.revision  # what was asked for; what is read is the commit
    return _found(source, folder.job(unit.job, use_cache=use_cache))


def _found(source: Any, job: Job) -> dict[str, Any]:
    from analyzer.analyze.analyzing import analyze_model
    from analyzer.analyze.scanning import scan_model
    from analyzer.analyze.verifying import verify_with_scan
    from analyzer.survey.work.statics import statics_of

    if job.do == "scan":
        return dict(plain(scan_model(source, job.scan)))
    if job.do == "verify":
        assert job.verify is not None
        verified = verify_with_scan(source, job.verify, job.scan, lambda *_: None)
        sizes = {name: getattr(verified.scanned, name) for name in SIZES if verified.scanned is not None}
        return {**plain(verified.result), **sizes, **statics_of(verified)}
    done = analyze_model(source, job.verify, scan=job.scan)
    return {
        **plain(done.verified),
        "outliers": plain(done.scanned.outliers),
        "unread": plain(done.scanned.unread),
        "entry": done.entry,
        **statics_of(done.run),
    }


def pin(name: str) -> dict[str, Any]:
    """Return what a name of a list stands for now: name, commit, and the bytes that jobs need, from headers alone.

    `scan_bytes` is what its down projections have; null where they cannot be told. Raises AnalyzerError where it
    cannot be opened.
    """
    from analyzer.base.errors import ArchitectureError
    from analyzer.checkpoint.checkpoint import Checkpoint
    from analyzer.projections.down_projections import find_projections
    from analyzer.projections.projection import down_projection_bytes
    from analyzer.source.opening import open_model

    source = open_model(name)
    checkpoint = Checkpoint(source)
    scan_bytes = None
    with suppress(ArchitectureError):  # which the job itself will tell, with its own settings
        scan_bytes = down_projection_bytes(find_projections(checkpoint).projections)
    return {
        "name": name if Path(name).is_absolute() else name_at(source.model, source.commit),
        "model": source.model,
        "revision": source.revision,
        "commit": source.commit,
        "state": state_of(source) if source.commit is None else None,
        "model_type": checkpoint.model_type,
        "scan_bytes": scan_bytes,
        "weight_bytes": checkpoint.total_bytes,
    }


def state_of(source: Any) -> str:
    """Return a hash of the names, sizes and times of a local folder's files: another one where any was changed."""
    folder = source.folder(())
    states = [[name, source.sizes[name], (folder / name).stat().st_mtime_ns] for name in sorted(source.sizes)]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _has_no_room(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with_parent() -> None:
    """End this process and all that it has begun once stdin is closed: who waits for them is no more."""
    while os.read(0, 1):
        pass
    for each in with_begun({psutil.Process()}):
        if each.pid != os.getpid():
            with suppress(psutil.Error):
                each.kill()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
