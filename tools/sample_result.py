"""Keep the sample model's result as docs/sample.json, and print it as `superweight analyze` does.

`make demo` runs the analysis once, as JSON; what it cost, which no two runs share, is left out. README and guide show
what the renderer makes of the file, and a test renders it again.

    python tools/sample_result.py build/sample.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from analyzer.base.records import Coordinate
from analyzer.catalog.report import render_agreement
from analyzer.verify.records import VerifyResult
from analyzer.verify.report import render_verify

RESULT = Path(__file__).parents[1] / "docs" / "sample.json"


@dataclass(frozen=True)
class Sample:
    """What `superweight analyze --json` printed, but for the outliers."""

    verified: VerifyResult
    agrees_with_reported: list[dict[str, Any]]
    catalog_file: Path

    @property
    def text(self) -> str:
        """What the command prints without --json."""
        return render_verify(self.verified, self.catalog_file, render_agreement(self.agrees_with_reported))


def main() -> None:
    """Keep the result of the file given, and print it."""
    text = Path(sys.argv[1]).read_text("utf-8")
    printed = json.loads(text)
    printed.pop("cost", None)
    sample = sample_of(printed)
    RESULT.write_text(json.dumps(printed, indent=2) + "\n", "utf-8")
    print(sample.text)


def stored_sample() -> Sample:
    """Return the result that is kept."""
    return sample_of(json.loads(RESULT.read_text("utf-8")))


def sample_of(printed: dict[str, Any]) -> Sample:
    """Return what the JSON object of `superweight analyze` says."""
    return Sample(_record(VerifyResult, printed), printed["agrees_with_reported"], Path(printed["catalog_file"]))


def _record(kind: Any, value: Any) -> Any:
    """Return a value of JSON as the type that it was made of."""
    if kind is Coordinate:
        return Coordinate(**value)
    if is_dataclass(kind) and isinstance(kind, type):
        types = get_type_hints(kind)
        return kind(**{field.name: _record(types[field.name], value.get(field.name)) for field in fields(kind)})
    if isinstance(kind, UnionType):
        return None if value is None else _record(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        members = get_args(kind)
        kinds = [members[0]] * len(value) if members[-1] is Ellipsis else members
        return tuple(_record(each, member) for each, member in zip(kinds, value, strict=True))
    return value


if __name__ == "__main__":
    main()
