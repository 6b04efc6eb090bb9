"""How often is a weight dropped too early? Its cost over the whole text, against what the looks at parts of it say.

    python tools/early_decisions.py                  # on the sample model: 200 weights, 25 minutes on two cores
    python tools/early_decisions.py --weights 40

Weights with costs of every size are made: critical ones times factors between 0 and 1, and the static outliers.
Each is run over the whole evaluation text first, and then looked at as a verification looks at it: both as one that
moves the stream little and as one that moves it far, whose first look is at a whole window.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from sample_model import built_sample_model
from sample_result import stored_sample
from tabulate import tabulate

from analyzer.analyze.running import open_runnable
from analyzer.analyze.scanning import scan_model
from analyzer.forward.checking import check_rows
from analyzer.forward.edits import UNTOUCHED, Intervention, scaling, zeroing
from analyzer.forward.losses.paired import PairedLosses, Told
from analyzer.forward.losses.plain import token_losses
from analyzer.model.tokens import Window
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.verify.costs.effects import CRITICAL_INCREASE, may_be_costly
from analyzer.verify.costs.measuring import ERROR, Measuring, Pair, Tell
from analyzer.verify.settings import evaluation_text
from analyzer.verify.verification import KEPT_BYTES

AT_ONCE = 8  # rows that share the blocks before their edits
SMALL = 0.12  # of the loss: of what costs no more, many factors give costs near that of a critical one
SCALED = 0.6  # of the weights
BANDS = (-np.inf, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, np.inf)  # of the loss


def main() -> None:
    """Print a table: of the weights of each band of costs, how many are dropped, and after how many tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=200)
    count = parser.parse_args().weights
    source = FolderSource(built_sample_model())
    runner, tokens = open_runnable(source).build()
    windows = tokens.windows(evaluation_text())
    check_rows(runner, windows[0].ids)
    scaled = int(count * SCALED)
    interventions = [*_scaled(scaled), *_static(source, count - scaled)]
    measured: dict[tuple[Window, Intervention], Told] = {}
    todo = [UNTOUCHED, *interventions]
    for start in range(0, len(todo), AT_ONCE):
        pairs = [(window, each) for each in todo[start : start + AT_ONCE] for window in windows]
        measured |= {pair: Told(each) for pair, each in zip(pairs, token_losses(runner, pairs), strict=True)}
        print(f"{start} of {len(interventions)}", end="\r", file=sys.stderr)

    def again(pairs: Sequence[Pair], *_: object, **__: object) -> list[Told]:
        return [measured[pair] for pair in pairs]

    def measuring(tell: Tell) -> Measuring:
        return Measuring(tell, windows, lambda *_: None, causal=True, increase=CRITICAL_INCREASE)

    whole = measuring(again)
    whole.look(interventions, whole.last, "")
    looked = {how: measuring(PairedLosses(runner, KEPT_BYTES)) for how in ("quiet", "loud")}
    looked["loud"].look_at_window(interventions, "")
    kept_on = {how: set(may_be_costly(each, interventions)) for how, each in looked.items()}

    def dropped(how: str, some: Sequence[Intervention]) -> int:
        return sum(each not in kept_on[how] for each in some)

    rows = []
    for low, high in pairwise(BANDS):
        here = [i for i in interventions if low <= whole.of(i).delta / whole.loss < high]
        row: list[object] = [f"{low:.2%} to {high:.2%}", len(here)]
        for how, each in looked.items():
            row += [dropped(how, here), int(np.median([each.of(i).tokens for i in here])) if here else "-"]
        rows.append(row)
    columns = [f"{how}: {column}" for how in looked for column in ("dropped", "tokens, median")]
    print(tabulate(rows, ["costs, of the loss", "weights", *columns], disable_numparse=True))
    costly = [i for i in interventions if whole.of(i).delta >= CRITICAL_INCREASE * whole.loss]
    wrong = " and ".join(f"{dropped(how, costly)} ({how})" for how in looked)
    print(
        f"{wrong} of {len(costly)} that cost {CRITICAL_INCREASE:.0%} or more were dropped; the rule allows {ERROR:.0%}"
    )


def _scaled(count: int) -> list[Intervention]:
    """Return the least of the sample's critical weights, each times factors between 0 and 1, so many in all."""
    weights = stored_sample().verified.super_weights
    critical = [w.coordinate for w in weights if w.effect == "critical" and (w.delta or 0) < SMALL * (w.loss or 0)]
    factors = np.linspace(0, 1, -(-count // len(critical)), endpoint=False)
    return [scaling({c: float(factor)}) for factor in factors for c in critical][:count]


def _static(source: FolderSource, count: int) -> list[Intervention]:
    """Return the zeroings of the largest weights that are not critical ones."""
    critical = {w.coordinate for w in stored_sample().verified.super_weights if w.effect == "critical"}
    outliers = scan_model(source, ScanSettings(top=count + len(critical))).outliers
    return [zeroing([o.coordinate]) for o in outliers if o.coordinate not in critical][:count]


if __name__ == "__main__":
    main()
