"""The folder of a survey, which several processes and machines may share: results, failures, claims; no lock.

A unit's files are in `DO/ab/KEY.json` (its result), `DO/ab/KEY.failed.json` and `DO/ab/KEY.claim`. Results and failures
are written whole or not at all. A claim is made by who works on the unit, and touched now and then; one that is old, or
whose maker is dead, is taken over. Who loses a race does a unit twice, which costs time and changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from analyzer.base.atomic import check_writable, write_whole
from analyzer.base.errors import SurveyError, shown
from analyzer.survey.units import CLASSES, JOBS, PIN, Failure, Job, Unit

RESULT, FAILURE, CLAIM, ASIDE = ".json", ".failed.json", ".claim", ".aside"
BEAT_S = 10.0
STALE_S = 120.0  # of a claim that nobody has touched
JOB_FOLDER, UNITS_FOLDER = "jobs", "units"
SAME_S = 2.0  # by which two looks at when a process began may differ
MAX_BYTES = 500_000_000  # of a result; more is none of ours
MINE = f"{os.getpid()}-{secrets.token_hex(8)}"


class Folder:
    """A survey's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        """Create the folder, if it is not there. Raises SurveyError where it cannot be, or takes no files."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            check_writable(self.root / RESULT)
        except OSError as error:
            raise SurveyError(
                f"cannot write to the folder {shown(self.root)}: {error.strerror}; give another"
            ) from error
        self._check_folders()

    def check(self) -> None:
        """Raise SurveyError where there is no survey."""
        self._check_folders()
        if not (self.root / JOB_FOLDER).is_dir():
            raise SurveyError(f"{shown(self.root)} is no survey's folder: `superweight survey run` makes one")

    def _check_folders(self) -> None:
        for name in (PIN, *JOBS, JOB_FOLDER, UNITS_FOLDER):
            path = self.root / name
            if os.path.lexists(path) and not path.is_dir():
                raise SurveyError(f"{shown(path)} is where a survey has a folder, and is none: move it away")

    def path(self, unit: Unit, suffix: str) -> Path:
        """Return where a unit's file is."""
        return self.root / unit.do / unit.key[:2] / f"{unit.key}{suffix}"

    def result(self, unit: Unit) -> dict[str, Any] | None:
        """Return what a unit found; null where it has no result. Raises SurveyError for a file that is none."""
        found = _load(self.path(unit, RESULT))
        if found is None or (isinstance(found, dict) and isinstance(found.get("result"), dict)):
            return found
        raise self.broken(unit)

    def broken(self, unit: Unit) -> SurveyError:
        """Return the error of a unit whose result is JSON, and not what a survey writes."""
        path = shown(self.path(unit, RESULT))
        return SurveyError(f"{path} is not what a survey writes: delete it, and run the survey again")

    def failure(self, unit: Unit) -> Failure | None:
        """Return why a unit failed; null where it has not. Raises SurveyError for a file that is none."""
        path = self.path(unit, FAILURE)
        content = _load(path)
        try:
            failure = None if content is None else Failure(**content["failure"])
        except (KeyError, TypeError):
            pass
        else:
            if failure is None or (
                failure.kind in CLASSES and isinstance(failure.line, str) and type(failure.attempts) is int
            ):
                return failure
        raise SurveyError(f"{shown(path)} is not what a survey writes: delete it")

    def save_result(self, unit: Unit, content: Mapping[str, Any]) -> None:
        """Write what a unit found, whole, in the place of a failure."""
        _save(self.path(unit, RESULT), {"unit": asdict(unit), **content})
        self.path(unit, FAILURE).unlink(missing_ok=True)

    def save_failure(self, unit: Unit, kind: str, line: str) -> Failure:
        """Write why a unit failed, counting the attempts: anew where the file there is broken."""
        before = None
        with suppress(SurveyError):
            before = self.failure(unit)
        failure = Failure(kind, line, 1 + (before.attempts if before else 0))
        _save(self.path(unit, FAILURE), {"unit": asdict(unit), "failure": asdict(failure)})
        return failure

    def written(self, unit: Unit, suffix: str) -> float | None:
        """Return when a file of a unit was written, by the clock of who keeps the folder; null where there is none."""
        with suppress(OSError):
            return self.path(unit, suffix).stat().st_mtime
        return None

    def now(self) -> float:
        """Return the time by the clock of who keeps the folder: machines that share it may disagree."""
        probe = _aside(self.root)
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def keys(self, do: str, suffix: str) -> set[str]:
        """Return the keys of all units of a kind of job that have such a file."""
        found = set()
        with suppress(FileNotFoundError):
            for part in os.scandir(self.root / do):
                names = [] if not part.is_dir() else [each.name for each in os.scandir(part.path)]
                found |= {name[: -len(suffix)] for name in names if name.endswith(suffix)}
        return {key for key in found if "." not in key}

    def save_job(self, job: Job, units: list[Unit]) -> None:
        """Keep what a job is, and which units it has been asked for."""
        _save(self.root / JOB_FOLDER / f"{job.key}{RESULT}", job.content)
        lines = "".join(json.dumps(asdict(unit), sort_keys=True) + "\n" for unit in units)
        name = f"{job.key}-{_digest(lines)}.jsonl"
        path = self.root / UNITS_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lines.encode())

    def job(self, key: str, *, use_cache: bool = True) -> Job:
        """Return the job of this key. Raises SurveyError where it is not there."""
        path = self.root / JOB_FOLDER / f"{key}{RESULT}"
        content = _load(path)
        try:
            return Job.from_content(content or {}, use_cache=use_cache)
        except (KeyError, TypeError) as error:
            raise SurveyError(f"{shown(path)} is missing, or not what a survey writes: run it again") from error

    def units(self) -> list[Unit]:
        """Return every unit that was asked for, once, in order of model and commit."""
        self.check()
        found = {unit.key: unit for path in sorted((self.root / UNITS_FOLDER).glob("*.jsonl")) for unit in _units(path)}
        return sorted(found.values(), key=lambda u: (u.model, u.commit or "", u.do, u.job, u.key))

    def claims(self) -> Iterator[tuple[str, float]]:
        """Yield the key of each unit that somebody works on, and for how many seconds its claim was not touched."""
        try:
            now = self.now()
        except OSError:  # a folder that may be looked at alone
            now = time.time()
        for do in (PIN, *JOBS):
            for path in (self.root / do).glob(f"*/*{CLAIM}"):
                with suppress(OSError):
                    age = abs(now - path.stat().st_mtime)
                    if age < STALE_S and not _is_dead(path):
                        yield path.name.removesuffix(CLAIM), age

    def claim(self, unit: Unit) -> Claim | None:
        """Return the claim to a unit; null where another has it."""
        path = self.path(unit, CLAIM)
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            if _create(path, json.dumps({"owner": MINE, **_me()}).encode()):
                return Claim(path)
            if not self._set_aside(path):
                return None
        return None

    def sweep(self) -> None:
        """Take away the claims of processes that are no more, and what else they have begun."""
        now = self.now()
        for path in (*self.root.glob(f".*{ASIDE}"), *self.root.glob(f"*/*/.*{ASIDE}")):
            with suppress(OSError):
                if now - path.stat().st_mtime > STALE_S:
                    path.unlink()
        for do in (PIN, *JOBS):
            for path in (self.root / do).glob(f"*/*{CLAIM}"):
                self._set_aside(path)

    def _set_aside(self, path: Path) -> bool:
        """Take away a claim whose maker is gone; false where it is not, or another was quicker."""
        try:
            before = _read(path)
            if not _is_dead(path) and abs(self.now() - path.stat().st_mtime) < STALE_S:  # a clock may be set back
                return False
            aside = _aside(path.parent)
            path.rename(aside)
            if aside.read_bytes() != before:  # somebody else's, who was quicker
                with suppress(OSError):
                    os.link(aside, path)
                aside.unlink()
                return False
            aside.unlink()
        except FileNotFoundError:
            return True
        return True


class Claim:
    """A unit that this process works on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = time.monotonic()

    def beat(self) -> None:
        """Say, if it is time to, that it is still worked on."""
        if time.monotonic() - self._at > BEAT_S:
            self._at = time.monotonic()
            with suppress(OSError):
                os.utime(self._path)

    def release(self) -> None:
        """Give the unit up."""
        with suppress(OSError):
            if json.loads(self._path.read_text("utf-8"))["owner"] == MINE:
                self._path.unlink()


def _aside(folder: Path) -> Path:
    """Return a name in a folder that nobody else takes."""
    return folder / f".{MINE}-{secrets.token_hex(4)}{ASIDE}"


def _create(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet, with all of its content at once; false where it is there."""
    begun = _aside(path.parent)
    begun.write_bytes(content)
    try:
        os.link(begun, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links: then the content comes a moment later
        with suppress(FileExistsError), path.open("xb") as file:
            file.write(content)
            return True
        return False
    finally:
        begun.unlink()


def _me() -> dict[str, Any]:
    """Return what tells this process from others: a number of a process means nothing in another space of numbers."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    host = f"{socket.gethostname()} {space}"
    return {"host": host, "pid": os.getpid(), "began": _began(os.getpid())}


def _began(pid: int) -> float:
    """Return when a process began, in seconds since its machine did: the clock may be set meanwhile."""
    machine = 0.0 if psutil.WINDOWS else psutil.boot_time()  # what psutil adds goes with the clock
    return psutil.Process(pid).create_time() - machine


def _is_dead(path: Path) -> bool:
    """Tell whether a claim's maker was a process of this machine that is no more."""
    try:
        made = json.loads(_read(path))
        if made["host"] != _me()["host"]:
            return False
        return bool(abs(_began(made["pid"]) - made["began"]) > SAME_S)
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):  # begun, and not yet written
        return False


def _units(path: Path) -> Iterator[Unit]:
    try:
        for line in _read(path).splitlines():
            yield Unit(**json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise SurveyError(f"{shown(path)} is not what a survey writes: delete it, and run the survey again") from error


def _read(path: Path) -> bytes:
    """Return a file's content. Raises OSError where it is no file, such as a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.read_bytes()


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SurveyError(f"{shown(path)} has more than {MAX_BYTES:,} bytes, too many for a result: delete it")
        return json.loads(_read(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SurveyError(f"cannot read {shown(path)}: {error.strerror}; mend or delete it") from error
    except (ValueError, RecursionError) as error:
        raise SurveyError(f"{shown(path)} is not JSON: delete it, and run the survey again") from error


def _save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
