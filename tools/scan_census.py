"""What `scan` finds in a tiny model with a planted weight, against its down projections as running it tells them."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiny_models import Kind, NotBuildable, build, one_line

PLANTED = -50.0

Verdict = tuple[str, str]
"""right, refused, wrong or not buildable, and why."""


def save_with_truth(kind: Kind, folder: Path) -> None:
    """Write a model with one weight planted, and what is true of it, or why it cannot be built."""
    from planting import locate, number_as_filed, plant
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


def compare_scanned(truth: Mapping[str, Any], folder: Path) -> tuple[Verdict, Sequence[Mapping[str, Any]]]:
    """Scan a folder and compare the result with what is true; return the verdict, and what was found."""
    from analyzer.analyze.scanning import scan_model
    from analyzer.base.errors import AnalyzerError
    from analyzer.scan.records import ScanSettings
    from analyzer.source.opening import open_model

    try:
        result = scan_model(open_model(str(folder)), ScanSettings(top=1, use_cache=False))
    except AnalyzerError as error:
        return ("refused", str(error).replace(str(folder), "MODEL")), ()
    except Exception as error:
        return ("wrong", one_line(error)), ()
    found = [{**asdict(each), "writes": each.writes or "residual"} for each in result.tensors]
    wrong = [*differences(truth["matrices"], found), *planted_wrong(truth, asdict(result.outliers[0]))]
    wrong += [f"says that {each.count} x {each.names} is not read: {each.why}" for each in result.unread]
    return ("wrong" if wrong else "right", "; ".join(wrong)), found


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
