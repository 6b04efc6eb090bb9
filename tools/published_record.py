"""Put the published record of super weights into the catalog: a table of what others report -> catalog/<family>.json.

    python tools/published_record.py ../shared/data/published_coordinates.csv catalog
    python tools/published_record.py ../shared/data/published_more.csv catalog

It can run again: what is there already stays, entries are not touched, and the same table leaves every file as it was.
Nothing is guessed: a source, or a row marked as a conflict, that the tables below do not know is an error.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.base.errors import AnalyzerError, CatalogError, shown
from analyzer.catalog.families import family_of
from analyzer.catalog.files import save_reported
from analyzer.catalog.reported import NONE_FOUND, merged

Source = tuple[str, str, str, str]  # name, kind, URL, what it says itself

YU = ("Yu et al. 2024, Table 2", "paper", "https://arxiv.org/abs/2411.07191", "")
YU_MAP = ("LLMSuperWeight's map", "code", "https://github.com/mengxiayu/LLMSuperWeight/blob/main/outliers/model.py", "")
YU_ISSUE = ("LLMSuperWeight issue 2", "code", "https://github.com/mengxiayu/LLMSuperWeight/issues/2", "")
YU_ANALYZE = (
    "LLMSuperWeight's analyze.py",
    "code",
    "https://github.com/mengxiayu/LLMSuperWeight/blob/main/analyze.py",
    "",
)
ARCTOS = ("arctos v5", "code", "https://github.com/lea19019/arctos", "")
ARCTOS_Q6 = ("arctos q6", "code", "https://github.com/lea19019/arctos", "")
SU = ("Su et al. 2025, Table 8", "paper", "https://arxiv.org/abs/2507.23279", "")
CYITA = ("cyita/LLMSuperWeight", "code", "https://github.com/cyita/LLMSuperWeight", "")
CENSUS_URL = "https://github.com/Georgakopoulos-Soares-lab/superweights"
CENSUS = ("Georgakopoulos-Soares census", "census", CENSUS_URL, "")
GROB = (
    "fabianandresgrob/super_weights",
    "code",
    "https://github.com/fabianandresgrob/super_weights/tree/c23c230",
    "",
)


def _saying(source: Source, note: str) -> Source:
    return (*source[:3], note)


# What the table's `source` says -> the sources. The row's notes, and where its file is, go with the last of them.
SOURCES: dict[str, tuple[Source, ...]] = {
    "Yu et al. 2411.07191 Table 2 + mengxiayu/LLMSuperWeight map@232e4ee; value+revision: lea19019/arctos v5": (
        YU,
        YU_MAP,
        ARCTOS,
    ),
    "Yu Table 2 (NOT in repo map); confirmed LLMSuperWeight#2; value arctos v5": (
        _saying(YU, "not in its code's map"),
        YU_ISSUE,
        ARCTOS,
    ),
    "Yu Table 2 (NOT in repo map); value arctos v5": (_saying(YU, "not in its code's map"), ARCTOS),
    "Yu Table 2 (paper)": (YU,),
    "mengxiayu/LLMSuperWeight SUPER_WEIGHTS_MAP@232e4ee": (YU_MAP,),
    "mengxiayu SUPER_WEIGHTS_MAP@232e4ee (not in paper)": (_saying(YU_MAP, "not in the paper"),),
    'mengxiayu analyze.py model_map comment "not sufficient"': (
        _saying(YU_ANALYZE, 'a comment says "not sufficient"'),
    ),
    "mengxiayu analyze.py (commented out)": (_saying(YU_ANALYZE, "commented out"),),
    "arctos v5 detector (not in Table 2); Su et al. lists for LLaVA-1.5": (
        _saying(SU, "listed there for LLaVA-1.5"),
        _saying(ARCTOS, "not in Yu et al.'s Table 2"),
    ),
    "arctos v5 detector (not in Table 2)": (_saying(ARCTOS, "not in Yu et al.'s Table 2"),),
    "arctos v5 detector, inert": (_saying(ARCTOS, "inert"),),
    "arctos v5 detector": (ARCTOS,),
    "arctos v5 detector + ablation": (ARCTOS,),
    "arctos v5": (ARCTOS,),
    "arctos v5 (flagged over-generated)": (_saying(ARCTOS, "flagged as over-generated"),),
    "arctos v5: none found": (ARCTOS,),
    "arctos q6 (unverified)": (_saying(ARCTOS_Q6, "unverified"),),
    "Su et al. Super Experts (ICLR 2026) Table 8": (SU,),
    "Su et al. 2507.23279 Table 8": (SU,),
    "cyita/LLMSuperWeight": (CYITA,),
    "cyita/LLMSuperWeight generate.py commented line": (_saying(CYITA, "a commented line of generate.py"),),
    "haziq-exe/SuperWeightQuantization": (
        ("haziq-exe/SuperWeightQuantization", "code", "https://github.com/haziq-exe/SuperWeightQuantization", ""),
    ),
    "sunmoonron/super-weight-circuit-patching config.py": (
        (
            "sunmoonron/super-weight-circuit-patching",
            "code",
            "https://github.com/sunmoonron/super-weight-circuit-patching",
            "",
        ),
    ),
    "aerubanov/SmolLMSuperWeight notebook": (
        ("aerubanov/SmolLMSuperWeight", "notebook", "https://github.com/aerubanov/SmolLMSuperWeight", ""),
    ),
    "sahilpardasani/Analysing-Super-Weight-in-LLMs notebook": (
        (
            "sahilpardasani/Analysing-Super-Weight-in-LLMs",
            "notebook",
            "https://github.com/sahilpardasani/Analysing-Super-Weight-in-Large-Language-Models",
            "",
        ),
    ),
    "wangzhaode blog (MNN) 2025-12-09": (
        (
            "wangzhaode's blog (MNN)",
            "notebook",
            "https://github.com/wangzhaode/llm-lab/blob/main/super_weight/find_super.py",
            "",
        ),
    ),
    "Abhinay1997/SuperWeight-Moondream README": (
        ("Abhinay1997/SuperWeight-Moondream", "notebook", "https://github.com/Abhinay1997/SuperWeight-Moondream", ""),
    ),
    "Georgakopoulos-Soares-lab/superweights audit/census_master.csv": (CENSUS,),
    "Georgakopoulos README retraction 9": (("Georgakopoulos-Soares README, retraction 9", "census", CENSUS_URL, ""),),
    "Georgakopoulos ratio argmax": (("Georgakopoulos-Soares activation ratio", "census", CENSUS_URL, ""),),
    "fabianandresgrob/super_weights@c23c230": (GROB,),
}

# The repositories of whose results the table names the file, beside their URL.
WITH_FILES = ("lea19019/arctos", "fabianandresgrob/super_weights ")

# Rows without a coordinate: what their source says in its place.
NO_COORDINATE = {
    "arctos v5: none found": NONE_FOUND,
    "Abhinay1997/SuperWeight-Moondream README": "super weights are claimed, but no coordinate is published",
}


@dataclass(frozen=True)
class Conflict:
    """Coordinates of one model on which sources contradict each other, and how; both sides are kept.

    Of those that are `settled` the standing is `reported` again, by the rule of docs/catalog.md.
    """

    model: str
    coordinates: frozenset[tuple[int, int, int | None]]  # (layer, row, col)
    reason: str
    settled: frozenset[tuple[int, int, int | None]] = frozenset()


_LLAMA_31 = frozenset({(1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)})
_LLAMA_31_REASON = (
    "Whether each of the three matters is disputed: zeroing one changes perplexity by at most 2 %, zeroing all three "
    "multiplies it by 47,488 (both measured on Llama-3.1-8B-Instruct, where they are the same weights)."
)
CONFLICTS = (
    Conflict(
        "allenai/OLMo-1B-0724-hf",
        frozenset({(1, 1764, 8041), (2, 1764, 8041)}),
        "The paper says layer 1, its code layer 2. The weight at layer 1 is 0.0018 and zeroing it does nothing, the "
        "one at layer 2 is large: likely a typo in the paper. A detector of others, fabianandresgrob/super_weights, "
        "finds the one at layer 2, and not that at layer 1.",
        settled=frozenset({(2, 1764, 8041)}),
    ),
    Conflict(
        "HuggingFaceTB/SmolLM2-1.7B",
        frozenset({(1, 749, 4987), (7, 227, None)}),
        "A notebook finds (1, 749, 4987), the census row 227 of layer 7.",
    ),
    Conflict(
        "allenai/OLMo-7B-0724-hf",
        frozenset({(1, 269, None), (2, 269, None)}),
        "The largest activation ratio is at layer 2, yet zeroing the row at layer 1 does 47 times the damage.",
    ),
    Conflict("meta-llama/Llama-3.1-8B", _LLAMA_31, _LLAMA_31_REASON),
    Conflict("meta-llama/Llama-3.1-8B-Instruct", _LLAMA_31, _LLAMA_31_REASON),
    Conflict(
        "utter-project/EuroLLM-9B",
        frozenset({(1, 750, 9606)}),
        "arctos's q6 run found it (unverified), its v5 detector did not return it.",
    ),
)


def main(arguments: list[str]) -> int:
    """Merge a table into a catalog; returns the exit status."""
    if len(arguments) != 2:
        print("usage: published_record.py CSV CATALOG_DIR", file=sys.stderr)
        return 2
    table, folder = map(Path, arguments)
    try:
        families = defaultdict(list)
        for item in read_table(table):
            families[family_of(item["model"])].append(item)
        for family, items in sorted(families.items()):
            save_reported(folder, family, items)
    except (AnalyzerError, OSError) as error:
        print(f"error: {shown(error, 400)}", file=sys.stderr)
        return 1
    counts: dict[str, int] = defaultdict(int)
    for items in families.values():
        for item in items:
            counts[item["standing"]] += 1
    listed = ", ".join(f"{count} {standing}" for standing, count in sorted(counts.items()))
    print(f"{sum(counts.values())} coordinates in {len(families)} families: {listed}.")
    return 0


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the reported coordinates of a table, as the catalog keeps them. Raises CatalogError naming the line."""
    items = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                items.append(reported_item(row))
            except (KeyError, TypeError, ValueError) as error:
                raise CatalogError(f"{shown(path)}: row {number}: {shown(error)}") from error
    return merged([], items)


def reported_item(row: dict[str, str]) -> dict[str, Any]:
    """Return one row of the table as the catalog keeps it. Raises ValueError where the tables do not know it."""
    if row["source"] not in SOURCES:
        raise ValueError(f"the source {row['source']!r} is not in SOURCES")
    model, _, remark = row["model_repo"].partition(" ")
    layer, line, col = (int(row[axis]) if row[axis] else None for axis in ("layer", "row", "col"))
    expert = re.match(r"expert (\d+)", row["notes"])
    conflict = next(
        (c for c in CONFLICTS if layer is not None and c.model == model and (layer, line, col) in c.coordinates), None
    )
    disputed = conflict is not None and (layer, line, col) not in conflict.settled
    if conflict is None and "CONFLICT" in row["notes"]:
        raise ValueError(f"the conflict of {model} {layer},{line},{col} is not in CONFLICTS")
    if layer is None and row["source"] not in NO_COORDINATE:
        raise ValueError(f"{model} has no coordinate, and the source is not in NO_COORDINATE")
    return {
        "model": model,
        "revision": row["revision"] if row["revision"] not in ("", "unpinned") else None,
        "layer": layer,
        "expert": int(expert[1]) if expert else None,
        "row": line,
        "col": col,
        "value": float(row["value"]) if row["value"] else None,
        "standing": "none_reported" if layer is None else "disputed" if disputed else "reported",
        "reason": NO_COORDINATE[row["source"]] if layer is None else conflict.reason if conflict else None,
        "sources": list(_sources(row, remark)),
    }


def _sources(row: dict[str, str], remark: str) -> list[dict[str, str | None]]:
    """Return a row's sources; the last has the row's notes, what it adds to the model's name, and its own file."""
    paths = [re.sub("^(github |https://github.com/)", "", path.strip()) for path in row["source_url"].split(" ; ")]
    file = next((f"file: {path}" for path in paths if path.startswith(WITH_FILES)), "")
    *first, (name, kind, url, said) = SOURCES[row["source"]]
    notes = [said, row["notes"].strip(), remark.strip("()"), file]
    last = (name, kind, url, "; ".join(note for note in notes if note))
    return [{"name": n, "kind": k, "url": u, "note": note or None} for n, k, u, note in (*first, last)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
