"""A census: on a tiny model of every type that transformers knows, do `scan` and `verify` find what is there?

    python tools/coverage.py                        # all of them; writes docs/coverage.md
    python tools/coverage.py --only llama,mixtral   # some; prints their rows

Each model is built with random weights (tiny_models.py), its down projections are told by running it (true_mlps.py),
one weight is planted in one of them, the library saves it (planting.py), and the scan is compared with what is true
(scan_census.py). In another copy of it a weight is planted that makes a super activation (super_planting.py), and the
verification is compared with what the library's own model says (verify_census.py). Models are kept in the user's
cache, 1.6 GB: a second run only scans and verifies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
from scan_census import Verdict, compare_scanned, save_with_truth
from tiny_models import MAPPINGS, Kind, all_kinds
from verify_census import NOT_ON_TEXT, compare_verified, save_with_super_weight
from wheels import build_once

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS.parent))  # the analyzer of this checkout, wherever another is installed
DOCUMENT = TOOLS.parent / "docs" / "coverage.md"
BUILDERS = (
    *("tiny_sizes.py", "tiny_overrides.py", "tiny_configs.py", "tiny_models.py", "cutting.py", "forward_runs.py"),
    *("true_mlps.py", "true_places.py", "planting.py"),
)
VERIFY_BUILDERS = ("tiny_text.py", "stock_runs.py", "super_planting.py", "verify_census.py")
RUN = ("right", "refused", "wrong")
VERDICTS = (*RUN, NOT_ON_TEXT, "not buildable")


@dataclass(frozen=True)
class Row:
    """One type: what a scan and a verification came to, what is true, and what the scan found."""

    kind: Kind
    scan: Verdict
    verify: Verdict
    note: str = ""
    truth: Mapping[str, Any] = field(default_factory=dict)
    found: Sequence[Mapping[str, Any]] = ()

    @property
    def is_right(self) -> bool:
        """Whether both are right."""
        return self.scan[0] == self.verify[0] == "right"


def main() -> None:
    """Take the census, print what is not right, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="types, separated by commas")
    parser.add_argument("--json", type=Path, help="write what is true and what was found there")
    options = parser.parse_args()
    kinds = all_kinds()
    if options.only is not None:
        wanted = set(options.only.split(","))
        kinds = [kind for kind in kinds if wanted & {kind.model_type, str(kind)}]
    prepare()
    rows = []
    for number, kind in enumerate(kinds, 1):
        started = time.perf_counter()
        rows.append(check(kind))
        words = f"scan {rows[-1].scan[0]}, verify {rows[-1].verify[0]}"
        print(f"{number}/{len(kinds)} {kind} {words} {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if options.json is not None:
            options.json.write_text(json.dumps({str(row.kind): asdict(row) for row in rows}, indent=1))
    print(table([row for row in rows if not row.is_right] if options.only is None else rows))
    print(counts(rows))
    if options.only is None:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(rows))


def prepare() -> None:
    """Keep the library's bars and hints from the terminal, and tiny work from waiting for many threads."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check(kind: Kind, folder: Path | None = None) -> Row:
    """Build a kind's models unless they are in the cache (or in `folder`), scan and verify them, and compare."""
    folder = folder or cache_folder() / kind.model_type / kind.class_name
    truth = truth_of(kind, folder)
    if "not_buildable" in truth:
        verdict = "not buildable", truth["not_buildable"]
        return Row(kind, verdict, verdict)
    planted = folder / f"verify-{digest(VERIFY_BUILDERS)}"
    build_once(planted, lambda _scratch, built: save_with_super_weight(kind, truth["matrices"], built))
    scan, found = compare_scanned(truth, folder / "model")
    return Row(kind, scan, compare_verified(truth["matrices"], planted), notes(truth), truth, found)


def truth_of(kind: Kind, folder: Path) -> Mapping[str, Any]:
    """Return what is true of the model in a folder, built unless it is there, or why it cannot be built."""
    build_once(folder, lambda _scratch, built: save_with_truth(kind, built))
    truth: Mapping[str, Any] = json.loads((folder / "truth.json").read_text())
    return truth


@cache
def cache_folder() -> Path:
    """Return where models are kept: apart for each version of the libraries, and of what builds them."""
    versions = f"{version('transformers')}-{version('torch').partition('+')[0]}"
    return Path(platformdirs.user_cache_dir("superweight")) / "coverage" / f"{versions}-{digest(BUILDERS)}"


@cache
def digest(files: Sequence[str]) -> str:
    """Return what tells the versions of these files apart."""
    return hashlib.sha256(b"".join((TOOLS / name).read_bytes() for name in files)).hexdigest()[:12]


def notes(truth: Mapping[str, Any]) -> str:
    """Return what is to be known of a model: how its matrices were told, what is like one."""
    matrices = truth["matrices"]
    by_shape = sorted({re.sub(r"\d+", "*", each["parameter"]) for each in matrices if each["how"] == "shape"})
    words = []
    if by_shape:
        words.append(f"told by shape: {', '.join(by_shape)}")
    if any(each["layers"] for each in matrices):
        words.append("several blocks share one")
    if any(each["mlp"] is not None for each in matrices):
        words.append("several in a block")
    if any(each["writes"] == "latent" for each in matrices):
        words.append("latent")
    return "; ".join(words)


def shape_of(row: Row) -> str:
    """Return how many blocks and experts a model has, for each of its stacks."""
    stacks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in row.truth.get("matrices", ()):
        stacks[each["stack"]].append(each)
    words = []
    for each in stacks.values():
        blocks = len({block for matrix in each for block in (matrix["layers"] or [matrix["layer"]])})
        experts = len({matrix["expert"] for matrix in each if matrix["expert"] is not None})
        words.append(f"{blocks} x {experts}" if experts else str(blocks))
    return " + ".join(words)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| type | class | blocks x experts | scan | verify | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdicts = (f"{verdict}: {code(reason)}" if reason else verdict for verdict, reason in (row.scan, row.verify))
        cells = (row.kind.model_type, row.kind.class_name, shape_of(row), *verdicts, code(row.note))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def code(words: str) -> str:
    """Return words that no Markdown changes."""
    return "`" + words.replace("|", "/").replace("`", "'") + "`" if words else ""


def counts(rows: Sequence[Row]) -> str:
    """Return how many rows have each verdict, those of each mapping of the library apart."""
    mappings = {name: name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES") for name in MAPPINGS}
    lines = [f"| | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|---|"]
    for what in ("scan", "verify"):
        numbers = Counter(getattr(row, what)[0] for row in rows)
        lines.append(f"| {what}, all {len(rows)} | {' | '.join(str(numbers[verdict]) for verdict in VERDICTS)} |")
    for mapping, name in mappings.items():
        of = [row for row in rows if mapping_of(row.kind) == mapping]
        numbers = Counter(row.verify[0] for row in of)
        words = name.lower().replace("_", " ")
        lines.append(f"| verify, {words} | {' | '.join(str(numbers[verdict]) for verdict in VERDICTS)} |")
    run = [row.verify[0] for row in rows if row.verify[0] in RUN]
    shares = (f"{run.count(verdict) / max(1, len(run)):.1%}".replace("%", " %") for verdict in RUN)
    lines.append(f"| **verify, share of the {len(run)} that run on text** | {' | '.join(shares)} | | |")
    return "\n".join(lines)


def mapping_of(kind: Kind) -> str:
    """Return the first of the library's mappings that has a type and its class."""
    from transformers.models.auto import modeling_auto

    def has(mapping: str) -> bool:
        names = getattr(modeling_auto, mapping).get(kind.model_type, ())
        return kind.class_name in ([names] if isinstance(names, str) else names)

    return next(mapping for mapping in MAPPINGS if has(mapping))


def document(rows: Sequence[Row]) -> str:
    """Return the census as a page."""
    return f"""# Coverage

What `superweight scan` and `superweight verify` find in a tiny model, with random weights, of every type that
transformers {version("transformers")} has for causal, masked and sequence-to-sequence language models and for images
with text: `python tools/coverage.py`.

**scan.** A model's down projections are told by running it, without looking at a name. `right`: the scan found all of
them and nothing else, each in its block, expert and orientation, and ranks a planted weight first.

**verify.** A weight is planted so that the library's own model has a super activation, by the definition in
[Method](method.md), which it collapses without. `right`: that weight is confirmed at its place (where the library's
model has no super activation, none is); the residual stream after each block is the library's within 1e-4, and the
loss, untouched and with the weight zeroed, within 1e-5. `refused`: in one line, which is given. `not on text`: refused,
and so it is by the library's own model, which asks for images, sounds or states, as its own words tell that are given
too.

{counts(rows)}

{table(rows)}
"""


if __name__ == "__main__":
    main()
