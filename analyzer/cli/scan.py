"""`superweight scan`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import shown
from analyzer.base.progress import progress_bars
from analyzer.cli.options import cache_option, common_options, scan_options, score_option, top_option
from analyzer.cli.output import print_result, warn_of

if TYPE_CHECKING:
    from analyzer.scan.records import ScanSettings


class Layers(click.ParamType[tuple[range, ...]]):
    """Layer numbers and ranges of them, such as 0-10,24."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[range, ...]:
        """Return one range for each part."""
        ranges = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{shown(part)!r} is neither a layer nor a range such as 0-10", param, ctx)
            ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
        return tuple(ranges)


@click.command()
@common_options
@scan_options(
    top_option,
    score_option,
    click.option("--layers", type=Layers(), metavar="0-10,24", help="Only these layers.  [default: all]"),
    click.option(
        "--tensors",
        "pattern",
        metavar="PATTERN",
        help="Take the tensors of these names, such as 'blk.*.ff_lower', for down projections; the first number is the "
        "layer, a second the expert.",
    ),
    cache_option,
)
def scan(as_json: bool, quiet: bool, settings: ScanSettings, **where: Any) -> None:
    """Rank the outlier weights of every down projection, without running anything.

    Reads only the down projections, also from the Hub, and of those only what no earlier scan has read.

    \b
    Examples:
      superweight scan mistralai/Mistral-7B-v0.1
      superweight scan openai/gpt-oss-20b --score gain
      superweight scan ./model-Q4_K_M.gguf
      superweight scan ./my-model --top 5 --json | jq '.outliers[0]'
    """
    from analyzer.analyze.scanning import scan_model
    from analyzer.scan.report import render_scan
    from analyzer.source.opening import open_model

    with progress_bars(quiet) as progress:
        result = scan_model(open_model(**where), settings, progress=progress)
    print_result(result, as_json, render_scan)
    warn_of(result.unread, result.notes)
