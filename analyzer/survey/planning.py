"""Lists and plans: names of models, what they stand for, and the units that a job makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analyzer.base.errors import SurveyError, shown
from analyzer.survey.store import Folder
from analyzer.survey.units import Failure, Job, Unit, pin_unit

PLAN_VERSION = 1
HEADER = "superweight_plan"
MAX_FILE_BYTES = 500_000_000
MAX_NAME = 1000
MAX_MODEL_BYTES = 10**18
GAIN_FACTOR = 3  # the score gain reads what projects into an MLP too


@dataclass(frozen=True, slots=True)
class Pin:
    """What a name stands for, for good: see work/job.py's pin, which finds it out."""

    name: str
    model: str
    revision: str | None
    commit: str | None
    state: str | None
    model_type: str | None
    scan_bytes: int | None
    weight_bytes: int

    def needs(self, job: Job) -> int:
        """Return about how many bytes a job reads of the model."""
        if job.do != "scan" or self.scan_bytes is None:
            return self.weight_bytes
        return min(self.weight_bytes, self.scan_bytes * (GAIN_FACTOR if job.scan.score == "gain" else 1))

    def unit(self, job: Job) -> Unit:
        """Return the unit of this job on this model."""
        return Unit(
            job.do, job.key, self.name, self.model, self.revision, self.commit, self.state, needs=self.needs(job)
        )


def read_list(path: Path) -> list[str | Pin]:
    """Return what a list or a plan names, once each: a name where it is not known yet what it stands for.

    A list has a model a line, as the command line takes it, and comments from a # on; a plan is what write_plan makes.
    Raises SurveyError where it is neither.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise SurveyError(f"{shown(path)} is no list of models: give a file with one a line")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SurveyError(f"the list {shown(path)} is not UTF-8: save it as that") from error
    except OSError as error:
        raise SurveyError(f"cannot read the list {shown(path)}: {error.strerror}; give another") from error
    lines = text.splitlines()
    named = (
        _plan(path, lines) if lines and lines[0].startswith("{") else [_name(path, n, t) for n, t in enumerate(lines)]
    )
    found = list(dict.fromkeys(each for each in named if each))
    if not found:
        raise SurveyError(f"{shown(path)} names no model: give a file with one a line")
    return found


def plan_lines(folder: Folder, names: Iterable[str | Pin]) -> list[str]:
    """Return a plan's lines: what is known of each name, or why it is not; once what several names stand for."""
    lines, seen = [json.dumps({HEADER: PLAN_VERSION})], set()
    for each in names:
        known = each if isinstance(each, Pin) else pinned(folder, each)
        if isinstance(known, Pin):
            if (known.name, known.commit, known.state) not in seen:
                lines.append(json.dumps(asdict(known)))
            seen.add((known.name, known.commit, known.state))
        else:
            assert isinstance(each, str)
            why = {"failure": known.kind, "line": known.line} if known else {}
            lines.append(json.dumps({"name": each, **why}))
    return lines


def pinned(folder: Folder, name: str) -> Pin | Failure | None:
    """Return what a name stands for, as its unit has found out; why it could not, or null where it was not run."""
    unit = pin_unit(name)
    found = folder.result(unit)
    if found is None:
        return folder.failure(unit)
    return _pin(found["result"], f"what {shown(name)} stands for")


def part_of(names: Sequence[str | Pin], job: Job, shard: tuple[int, int]) -> list[str | Pin]:
    """Return the i-th of n parts of a list or plan, for a shard (i, n): every n-th name, the smallest first.

    It tells the same at any time, whatever of the names that are not pinned can be opened by then.
    """
    units = [each.unit(job) if isinstance(each, Pin) else pin_unit(each) for each in names]
    ordered = sorted(zip(units, names, strict=True), key=lambda pair: (pair[0].needs, pair[0].name, pair[0].key))
    return [name for _, name in ordered[shard[0] - 1 :: shard[1]]]


def units_of(folder: Folder, names: Iterable[str | Pin], job: Job) -> list[Unit]:
    """Return the units of a job, the smallest first; a name that cannot be pinned keeps that unit.

    Names that stand for the same make one, which has the revision of the first of them.
    """
    units: dict[str, Unit] = {}
    for each in names:
        known = each if isinstance(each, Pin) else pinned(folder, each)
        unit = known.unit(job) if isinstance(known, Pin) else pin_unit(str(each))
        units.setdefault(unit.key, unit)
    return sorted(units.values(), key=lambda unit: (unit.needs, unit.name, unit.key))


def _plan(path: Path, lines: Sequence[str]) -> list[str | Pin]:
    """Return what the lines of a plan say."""
    found: list[str | Pin] = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of the plan {shown(path)}"
        try:
            content = json.loads(line)
            if number == 1:
                if content != {HEADER: PLAN_VERSION}:
                    raise SurveyError(f"{shown(path)} is no plan of version {PLAN_VERSION}: make it again")
            elif "weight_bytes" in content:
                found.append(_pin(content, where))
            else:
                found.append(_name(path, number - 1, content["name"]))
        except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SurveyError(f"{where} is broken: make the plan again") from error
    return found


def _pin(content: dict[str, object], where: str) -> Pin:
    try:
        pin = Pin(**content)  # type: ignore[arg-type]
    except TypeError as error:
        raise SurveyError(f"{where} has not the form that is expected: make it again") from error
    texts = [pin.name, pin.model, *(t for t in (pin.revision, pin.commit, pin.state, pin.model_type) if t is not None)]
    sizes = [pin.weight_bytes, 0 if pin.scan_bytes is None else pin.scan_bytes]
    if not (
        all(isinstance(text, str) and text for text in texts)
        and all(type(size) is int and 0 <= size <= MAX_MODEL_BYTES for size in sizes)
        and (pin.commit is None) != (pin.state is None)
    ):
        raise SurveyError(f"{where} has not the form that is expected: make it again")
    return pin


def _name(path: Path, number: int, text: str) -> str:
    """Return the model that a line of a list names; that of a local one whole, for whoever works on it elsewhere."""
    name = "" if text.lstrip().startswith("#") else text.partition(" #")[0].partition("\t#")[0].strip()
    if len(name) > MAX_NAME or not name.isprintable():
        raise SurveyError(f"line {number + 1} of {shown(path)} is no model's name: {shown(name, 80)}")
    whole, colon, file = name.rpartition(":") if name.endswith(".gguf") and not _exists(name) else (name, "", "")
    return f"{Path(whole).expanduser().resolve()}{colon}{file}" if whole and _exists(whole) else name


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # no name that a file can have
        return False
