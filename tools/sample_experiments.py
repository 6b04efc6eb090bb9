"""Keep what `superweight experiment all` found on the sample model as docs/experiments/sample.json, for the guide.

The guide's pages show it (`make guide`), with what it was run on; what is long and shown nowhere is left out.

    python tools/sample_experiments.py DIR
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from guide import markdown

from analyzer.base.records import Coordinate
from analyzer.experiments.lab.records import Claim, Weight
from analyzer.experiments.reports.report import protocol_said

RESULTS = Path(__file__).parents[1] / "docs" / "experiments" / "sample.json"
KEPT = ("weights", "protocol", "arms", "findings", "claims")


def main() -> None:
    """Keep the results in the folder given."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in Path(sys.argv[1]).glob("*.json")}
    kept = {name: {key: found[name][key] for key in KEPT} for name in sorted(found)}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def about(name: str = "prune") -> str:
    """Return in words which weights an experiment was about, and on what it was run."""
    found = _results()[name]
    weights = "; ".join(
        dict.fromkeys(
            str(Weight(Coordinate(**{key: each.get(key) for key in Coordinate._fields}), each["value"]))
            for each in found["weights"]
            if not each.get("control")
        )
    )
    protocol = {key: value for key, value in found["protocol"].items() if key != "less"}
    return f"Of the sample model, SmolLM2-135M-Instruct as a 4-bit file has it: {weights}. {protocol_said(protocol)}\n"


def claims() -> str:
    """Return every claim, whether it holds, and why, as a table."""
    rows: list[tuple[str, ...]] = [
        (f"[{name}]({name}.md)", claim["text"], Claim(**claim).verdict, claim["why"])
        for name, each in _results().items()
        for claim in each["claims"]
    ]
    return markdown(("experiment", "claim", "here", "since"), rows)


def sizes() -> str:
    """Return what each experiment was run on, and how often the text was run, as a table."""
    return markdown(("experiment", "run on", "runs"), list(map(_size, _results().items())))


def findings(name: str) -> str:
    """Return the findings of an experiment as a list."""
    return "".join(f"- {each}\n" for each in _results()[name]["findings"])


def arms(name: str, *facts: str) -> str:
    """Return the arms of an experiment with their losses, and some of their facts, as a table."""
    rows = [
        (arm["name"], *(_number(arm.get(fact)) for fact in facts), *_costs(arm)) for arm in _results()[name]["arms"]
    ]
    return markdown(("arm", *facts, "loss", "perplexity", "Δ loss"), rows)


def _results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


def _size(result: tuple[str, Any]) -> tuple[str, ...]:
    name, protocol = result[0], result[1]["protocol"]
    windows = "windows" in protocol
    on = f"{protocol['windows']} x {protocol['length']:,} tokens" if windows else f"{protocol['prompts']} passages"
    if "windows" in protocol.get("calibration", {}):
        on += f", after {protocol['calibration']['windows']} to calibrate on"
    return name, on, str(protocol["runs"])


def _costs(arm: dict[str, Any]) -> tuple[str, str, str]:
    if arm["nll"] is None:
        return "infinite", "infinite", "infinite"
    half = "" if arm["delta_high"] is None else f" ±{arm['delta_high'] - arm['delta']:.4f}"
    delta = "" if arm["name"] == "original" else f"{arm['delta']:+.4f}{half}"
    return f"{arm['nll']:.4f}", f"{math.exp(arm['nll']):,.4g}", delta


def _number(value: Any) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
