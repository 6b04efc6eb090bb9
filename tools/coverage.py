"""A census: on a tiny model of every type that transformers knows, does a scan find every down projection?

    python tools/coverage.py                        # all of them; writes docs/coverage.md
    python tools/coverage.py --only llama,mixtral   # some; prints their rows

Each model is built with random weights (tiny_models.py), its down projections are told by running it (true_mlps.py),
one weight is planted in one of them, the library saves it (planting.py), and the scan is compared with what is true.
Models are kept in the user's cache, 0.8 GB: a second run only scans.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
from tiny_models import Kind, NotBuildable, all_kinds, build
from wheels import build_once

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS.parent))  # the analyzer of this checkout, wherever another is installed
DOCUMENT = TOOLS.parent / "docs" / "coverage.md"
BUILDERS = (
    *("tiny_sizes.py", "tiny_overrides.py", "tiny_configs.py", "tiny_models.py", "cutting.py", "forward_runs.py"),
    *("true_mlps.py", "true_places.py", "planting.py"),
)
PLANTED = -50.0


@dataclass(frozen=True)
class Row:
    """One type: what is true, what the scan found, and the verdict: right, refused, wrong or not buildable."""

    kind: Kind
    verdict: str
    reason: str = ""
    note: str = ""
    truth: Mapping[str, Any] = field(default_factory=dict)
    found: Sequence[Mapping[str, Any]] = ()


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
        print(f"{number}/{len(kinds)} {kind} {rows[-1].verdict} {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if options.json is not None:
            options.json.write_text(json.dumps({str(row.kind): asdict(row) for row in rows}, indent=1))
    print(table([row for row in rows if row.verdict != "right"] if options.only is None else rows))
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
    """Build a model unless it is in the cache (or `folder`), scan it and compare."""
    folder = folder or cache_folder() / kind.model_type / kind.class_name
    build_once(folder, lambda _scratch, built: save(kind, built))
    truth = json.loads((folder / "truth.json").read_text())
    if "not_buildable" in truth:
        return Row(kind, "not buildable", truth["not_buildable"])
    return compare(kind, truth, folder / "model")


@cache
def cache_folder() -> Path:
    """Return where models are kept: apart for each version of the libraries, and of what builds them."""
    digest = hashlib.sha256(b"".join((TOOLS / name).read_bytes() for name in BUILDERS)).hexdigest()[:12]
    versions = f"{version('transformers')}-{version('torch').partition('+')[0]}"
    return Path(platformdirs.user_cache_dir("superweight")) / "coverage" / f"{versions}-{digest}"


def save(kind: Kind, folder: Path) -> None:
    """Write a model with one weight planted, and what is true of it, or why it cannot be built."""
    from planting import locate, number_as_filed, plant
    from tiny_models import one_line
    from true_places import find_true_mlps

    folder.mkdir(parents=True)
    try:
        model = build(kind)
    except NotBuildable as reason:
        (folder / "truth.json").write_text(json.dumps({"not_buildable": str(reason)}))
        return
    found = find_true_mlps(model)
    places = [each.place for each in found.matrices]
    try:
        stored = locate(model, places)
    except Exception as error:  # a few classes cannot be saved
        (folder / "truth.json").write_text(json.dumps({"not_buildable": f"cannot be saved: {one_line(error)}"}))
        return
    matrices = [
        {
            **{name: getattr(each, name) for name in ("stack", "layer", "layers", "mlp", "expert", "writes", "how")},
            "parameter": each.place.parameter,
            "rows": each.place.rows,
            "cols": each.place.cols,
            **({"name": None} if (at := stored[each.place]) is None else asdict(at)),
        }
        for each in found.matrices
    ]
    number_as_filed(matrices)
    truth = {"matrices": matrices, "asides": dict(found.asides), "unreached": list(found.unreached)}
    if places:
        chosen = choose(matrices)
        row, col = matrices[chosen]["rows"] // 3, matrices[chosen]["cols"] - 5
        plant(model, places, places[chosen], row, col, PLANTED, folder / "model")
        truth["planted"] = {"matrix": chosen, "row": row, "col": col, "value": PLANTED}
    else:
        model.save_pretrained(folder / "model")
    (folder / "truth.json").write_text(json.dumps(truth))


def choose(matrices: Sequence[Mapping[str, Any]]) -> int:
    """Return which matrix has the planted weight: of the stack with most of them, a middle block's last expert."""
    sizes = Counter(each["stack"] for each in matrices)
    stack = max(sizes, key=lambda each: (sizes[each], each))
    layers = sorted({each["layer"] for each in matrices if each["stack"] == stack})
    middle = layers[len(layers) // 2]
    candidates = [n for n, each in enumerate(matrices) if (each["stack"], each["layer"]) == (stack, middle)]
    return max(candidates, key=lambda n: (-1 if matrices[n]["expert"] is None else matrices[n]["expert"], -n))


def compare(kind: Kind, truth: Mapping[str, Any], folder: Path) -> Row:
    """Scan a folder and compare the result with what is true."""
    from analyzer.analyze.scanning import scan_model
    from analyzer.base.errors import AnalyzerError
    from analyzer.scan.records import ScanSettings
    from analyzer.source.opening import open_model

    note = notes(truth)
    try:
        result = scan_model(open_model(str(folder)), ScanSettings(top=1, use_cache=False))
    except AnalyzerError as error:
        line = str(error).replace(str(folder), "MODEL")
        return Row(kind, "refused", line, note, truth)
    except Exception as error:
        return Row(kind, "wrong", f"{type(error).__name__}: {error}", note, truth)
    found = [{**asdict(each), "writes": each.writes or "residual"} for each in result.tensors]
    wrong = [*differences(truth["matrices"], found), *planted_wrong(truth, asdict(result.outliers[0]))]
    wrong += [f"says that {each.count} x {each.names} is not read: {each.why}" for each in result.unread]
    return Row(kind, "wrong" if wrong else "right", "; ".join(wrong), note, truth, found)


def differences(true: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a scan missed, what it added, and where it mistook towers, each in one phrase."""

    def keys(matrices: Iterable[Mapping[str, Any]], shape: Callable[[Mapping[str, Any]], Any]) -> Counter[Any]:
        return Counter((each["name"], each["layer"], each["expert"], tuple(shape(each))) for each in matrices)

    expected = keys(true, lambda each: (each["rows"], each["cols"]))
    present = keys(found, lambda each: each["shape"])
    wrong = [
        f"{what} {sum(some.values())} of {len(true)}: {patterns(some)}"
        for what, some in (("misses", expected - present), ("adds", present - expected))
        if some
    ]
    by_key = {(each["name"], each["expert"]): each for each in _mlps_by_name(true)}
    for name in ("mlp", "layers", "writes"):
        pairs = [(by_key.get((each["name"], each["expert"])), each) for each in found]
        mistaken = [each["name"] for is_true, each in pairs if is_true and _plain(is_true[name]) != _plain(each[name])]
        if mistaken:
            wrong.append(f"mistakes {name} of {patterns(Counter((each,) for each in mistaken))}")
    stacks: dict[str, set[str | None]] = defaultdict(set)
    towers: dict[str | None, set[str]] = defaultdict(set)
    for each in found:
        if (is_true := by_key.get((each["name"], each["expert"]))) is not None:
            stacks[is_true["stack"]].add(each["tower"])
            towers[each["tower"]].add(is_true["stack"])
    wrong += [f"takes {stack} for several towers" for stack, names in sorted(stacks.items()) if len(names) > 1]
    wrong += [f"takes {', '.join(sorted(names))} for one tower" for names in towers.values() if len(names) > 1]
    return wrong


def _mlps_by_name(matrices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the matrices with the MLPs of a block counted in the order of their names, as scans do, not of the run."""
    names: dict[tuple[str, int, bool], set[str]] = defaultdict(set)

    def holder(each: Mapping[str, Any]) -> str:
        return re.sub(r"\.experts?[._]?\d+", ".experts", each["name"]).removesuffix(".weight").rpartition(".")[0]

    def block(each: Mapping[str, Any]) -> tuple[str, int, bool]:
        return each["stack"], each["layer"], each["expert"] is not None

    for each in matrices:
        if each["mlp"] is not None:
            names[block(each)].add(holder(each))
    return [
        each if each["mlp"] is None else {**each, "mlp": sorted(names[block(each)]).index(holder(each))}
        for each in matrices
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def patterns(keys: Counter[Any]) -> str:
    """Return the names in these keys, numbers starred, each with how many it stands for."""
    starred: Counter[str] = Counter()
    for key, count in keys.items():
        starred[re.sub(r"\d+", "*", str(key[0])) + (f" {list(key[3])}" if len(key) > 3 else "")] += count
    return ", ".join(f"{name} x {count}" for name, count in sorted(starred.items()))


def planted_wrong(truth: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the first outlier, where the planted weight should be."""
    if "planted" not in truth:
        return ["ranks the weights of a model without MLPs"]
    planted = truth["planted"]
    matrix = truth["matrices"][planted["matrix"]]
    expected = (matrix["name"], matrix["layer"], matrix["expert"], planted["row"], planted["col"], planted["value"])
    ranked = tuple(best[name] for name in ("tensor", "layer", "expert", "row", "col", "value"))
    return [] if ranked == expected else [f"ranks {ranked} first, not {expected}"]


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
    lines = ["| type | class | blocks x experts | verdict | note |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = f"{row.verdict}: {code(row.reason)}" if row.reason else row.verdict
        cells = (row.kind.model_type, row.kind.class_name, shape_of(row), verdict, code(row.note))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def code(words: str) -> str:
    """Return words that no Markdown changes."""
    return "`" + words.replace("|", "/").replace("`", "'") + "`" if words else ""


def counts(rows: Sequence[Row]) -> str:
    """Return how many rows have each verdict."""
    numbers = Counter(row.verdict for row in rows)
    order = ("right", "refused", "wrong", "not buildable")
    return ", ".join(f"{numbers[verdict]} {verdict}" for verdict in order)


def document(rows: Sequence[Row]) -> str:
    """Return the census as a page."""
    return f"""# Coverage

What `superweight scan` finds in a tiny model, with random weights, of every type that transformers
{version("transformers")} has for causal, masked and sequence-to-sequence language models and for images with text:
`python tools/coverage.py`.
Its down projections are told by running the model, without looking at a name. `right`: the scan found all of them and
nothing else, each in its block, expert and orientation, and ranks a planted weight first.

{counts(rows)}, of {len(rows)} types and classes.

{table(rows)}
"""


if __name__ == "__main__":
    main()
