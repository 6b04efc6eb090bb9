"""`superweight diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

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
    verify_options,
)
from analyzer.cli.output import DIFFERS, check_picture, print_json, printing, warn_of

if TYPE_CHECKING:
    from analyzer.base.records import Unread
    from analyzer.diff.records import DiffResult, History
    from analyzer.diff.tensors.records import TensorDiff
    from analyzer.diff.tuned.records import TunedDiff
    from analyzer.scan.records import ScanSettings
    from analyzer.verify.settings import VerifySettings


VERIFYING = ("prompt", "text", "prompts", "tower", "device", "dtype")
SCANNING = ("top", "score", "use_cache")


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


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
@click.option(
    "--all-tensors", is_flag=True, help="In place of that: how far every tensor of both moved, in one pass over them."
)
@click.option("--exit-code", is_flag=True, help="Exit with 3 where something differs, with 0 where nothing does.")
@click.option(
    "--expect",
    multiple=True,
    metavar="GLOB",
    help="With --all-tensors: these may differ, and the exit status is 3 where others do; may be given again.",
)
@click.option("--verify", is_flag=True, help="In place of that: run both, and judge the known weights of A in each.")
@scan_options(top_option, score_option, cache_option, name="scanning")
@verify_options()
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
    all_tensors: bool,
    exit_code: bool,
    expect: tuple[str, ...],
    verify: bool,
    as_csv: bool,
    as_json: bool,
    plot: Path | None,
    folder: Path | None,
    quiet: bool,
    scanning: ScanSettings,
    settings: VerifySettings,
    token: str | None,
) -> None:
    """Show what changed between two versions: super weights, outliers, and where in the network.

    A and B are models, revisions of one (owner/name@revision), folders, GGUF files, or results saved with --json. Files
    that two models share are not read. The super weights are those of saved results, or those that the catalog knows.
    --prompt, --text, --prompts, --tower, --device and --dtype are of --verify.

    \b
    Examples:
      superweight diff EleutherAI/pythia-410m@step1000 EleutherAI/pythia-410m@step143000
      superweight diff EleutherAI/pythia-410m --revisions step1000,step143000 --plot steps.png
      superweight diff before.json after.json
      superweight diff ./before ./after --all-tensors --expect 'model.layers.*.mlp.*'
      superweight diff mistralai/Mistral-7B-v0.1 ./my-chat-model --verify
    """
    from analyzer.analyze.tuning import verify_known
    from analyzer.base.records import plain
    from analyzer.diff.records import History
    from analyzer.diff.reports.report import render_diff, render_history
    from analyzer.diff.reports.table import diff_csv, history_csv, tensors_csv, tuned_csv
    from analyzer.diff.reports.tensors import render_tensors
    from analyzer.diff.reports.tuned import render_tuned
    from analyzer.diff.tensors.comparing import compare_tensors
    from analyzer.diff.tuned.comparison import compare_answers
    from analyzer.diff.versions import compare_models, compare_revisions
    from analyzer.source.opening import open_model

    if (new is None) == (not revisions):
        raise click.UsageError("give either B or --revisions")
    if as_csv and as_json:
        raise click.UsageError("give either --csv or --json")
    if plot and not revisions:
        raise click.UsageError("--plot draws --revisions")
    if revisions and (all_tensors or verify or exit_code):
        raise click.UsageError("--all-tensors, --verify and --exit-code are of two versions, not of --revisions")
    if verify and all_tensors:
        raise click.UsageError("give either --all-tensors or --verify")
    for names, used in ((VERIFYING, verify), (SCANNING, not verify and not all_tensors)):
        if not used and (given := next(filter(_is_given, names), None)):
            raise click.UsageError(f"--{given.replace('use_cache', 'no-cache')} changes nothing here: leave it out")
    if expect and not all_tensors:
        raise click.UsageError("--expect names tensors: give --all-tensors too")
    check_picture(plot)
    result: DiffResult | History | TensorDiff | TunedDiff
    more: dict[str, Any] = {}
    with progress_bars(quiet) as progress:
        if new is None:
            result = compare_revisions(old, revisions, scanning, token=token, catalog=folder, progress=progress)
            text = history_csv(result) if as_csv else render_history(result)
        elif all_tensors:
            result = compare_tensors(old, new, expect=expect, token=token, progress=progress)
            text = tensors_csv(result) if as_csv else render_tensors(result)
        elif verify:
            base, tuned = (open_model(name, token=token) for name in (old, new))
            verified = verify_known(base, tuned, settings, catalog=folder, progress=progress)
            answers = (plain(verified.old), plain(verified.new))
            result = compare_answers(*answers, verified.known, notes=[verified.note])
            text = tuned_csv(result) if as_csv else render_tuned(result)
        else:
            result = compare_models(old, new, scanning, token=token, catalog=folder, progress=progress)
            text = diff_csv(result) if as_csv else render_diff(result)
    if not isinstance(result, History):
        more = {"identical": result.identical}

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
    if exit_code or expect:
        click.get_current_context().exit(_status(result))


def _status(result: DiffResult | History | TensorDiff | TunedDiff) -> int:
    """Return the exit status: what differs goes before what could not be read, and so cannot be called the same."""
    from analyzer.diff.records import DiffResult, History
    from analyzer.diff.tensors.records import TensorDiff

    if isinstance(result, TensorDiff):
        return DIFFERS if result.unexpected else 0
    assert not isinstance(result, History)
    if isinstance(result, DiffResult) and result.identical and result.unread:
        click.echo("error: what was not read may differ: give --all-tensors", err=True)
        return 1
    return 0 if result.identical else DIFFERS


def _warn(result: DiffResult | History | TensorDiff | TunedDiff) -> None:
    from analyzer.diff.records import DiffResult, History

    if isinstance(result, DiffResult):
        warn_of(result.unread, where=[f"the {each.side} one" for each in result.unread])
    if not isinstance(result, History):
        return
    of_unread: dict[Unread, list[str]] = {}
    for revision in result.revisions:
        for each in revision.unread:
            of_unread.setdefault(each, []).append(revision.revision)
    others = [f" and {len(names) - 1} more" if len(names) > 1 else "" for names in of_unread.values()]
    first = [shown(names[0], 40) for names in of_unread.values()]
    warn_of(of_unread, where=[f"revision {name}{more}" for name, more in zip(first, others, strict=True)])
