"""`superweight diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import shown
from analyzer.base.progress import progress_bars
from analyzer.cli.options import (
    cache_option,
    json_option,
    known_option,
    quiet_option,
    scan_options,
    score_option,
    token_option,
    top_option,
)
from analyzer.cli.output import check_picture, print_json, printing, warn_of

if TYPE_CHECKING:
    from analyzer.base.records import Unread
    from analyzer.diff.records import DiffResult, History
    from analyzer.scan.records import ScanSettings


def _revisions(_ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    names = [] if value is None else [name.strip() for name in value.split(",")]
    if value is not None and (len(names) < 2 or "" in names or len(set(names)) < len(names)):
        raise click.BadParameter("names two or more revisions, each once, with commas between", param=param)
    return names


@click.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="[B]", required=False)
@click.option(
    "--revisions",
    callback=_revisions,
    metavar="a,b,c",
    help="In place of B: follow the outliers of the model A through these branches, tags or commits.",
)
@scan_options(top_option, score_option, cache_option)
@token_option
@known_option
@click.option("--csv", "as_csv", is_flag=True, help="Print one table as CSV on stdout, nothing else.")
@json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.png",
    help="With --revisions: draw the weights that were followed.",
)
@quiet_option
def diff(
    old: str,
    new: str | None,
    revisions: list[str],
    as_csv: bool,
    as_json: bool,
    plot: Path | None,
    folder: Path | None,
    quiet: bool,
    settings: ScanSettings,
    token: str | None,
) -> None:
    """Show what changed between two versions: super weights, outliers, and where in the network.

    A and B are models, revisions of one (owner/name@revision), folders, GGUF files, or results saved with --json. Files
    that two models share are not read. The super weights are those of saved results, or those that the catalog knows.

    \b
    Examples:
      superweight diff EleutherAI/pythia-410m@step1000 EleutherAI/pythia-410m@step143000
      superweight diff EleutherAI/pythia-410m --revisions step1000,step143000 --plot steps.png
      superweight diff before.json after.json
    """
    from analyzer.base.records import plain
    from analyzer.diff.records import History
    from analyzer.diff.reports.report import render_diff, render_history
    from analyzer.diff.reports.table import diff_csv, history_csv
    from analyzer.diff.versions import compare_models, compare_revisions

    if (new is None) == (not revisions):
        raise click.UsageError("give either B or --revisions")
    if as_csv and as_json:
        raise click.UsageError("give either --csv or --json")
    if plot and not revisions:
        raise click.UsageError("--plot draws --revisions")
    check_picture(plot)
    result: DiffResult | History
    more: dict[str, Any] = {}
    with progress_bars(quiet) as progress:
        if new is not None:
            result = compare_models(old, new, settings, token=token, catalog=folder, progress=progress)
            text = diff_csv(result) if as_csv else render_diff(result)
            more = {"identical": result.identical}
        else:
            result = compare_revisions(old, revisions, settings, token=token, catalog=folder, progress=progress)
            text = history_csv(result) if as_csv else render_history(result)

    def show() -> None:
        if as_json:
            print_json({**plain(result), **more})
        else:
            click.echo(text, nl=not as_csv)

    with printing(show):
        if plot and isinstance(result, History):
            from analyzer.diff.reports.pictures import plot_history

            plot_history(result, plot)
    _warn(result)


def _warn(result: DiffResult | History) -> None:
    from analyzer.diff.records import DiffResult

    if isinstance(result, DiffResult):
        warn_of(result.unread, where=[f"the {each.side} one" for each in result.unread])
        return
    of_unread: dict[Unread, list[str]] = {}
    for revision in result.revisions:
        for each in revision.unread:
            of_unread.setdefault(each, []).append(revision.revision)
    others = [f" and {len(names) - 1} more" if len(names) > 1 else "" for names in of_unread.values()]
    first = [shown(names[0], 40) for names in of_unread.values()]
    warn_of(of_unread, where=[f"revision {name}{more}" for name, more in zip(first, others, strict=True)])
