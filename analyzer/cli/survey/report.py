"""`superweight survey report`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.base.errors import shown
from analyzer.cli.options import json_option
from analyzer.cli.output import print_json
from analyzer.cli.survey.options import folder_argument


@click.command("report")
@folder_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="The page; one that it did not write is left alone.  [default: report.html in DIR]",
)
@json_option
def survey_report(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write a page of what a survey has found: where super weights sit, what tells their effect, what failed and why.

    The page needs nothing else, and is the same, byte for byte, for the same results.

    \b
    Examples:
      superweight survey report survey
      superweight survey report survey --out super-weights.html
    """
    from analyzer.base.records import plain
    from analyzer.site.survey import REPORT, check_report, render_report, write_report
    from analyzer.survey.results.findings import find
    from analyzer.survey.results.prediction import predict
    from analyzer.survey.store import Folder

    Folder(folder).check()
    path = out or folder / REPORT
    check_report(path)
    findings = find(folder)
    predictions = predict(findings.weights)
    write_report(render_report(findings, predictions), path)
    if as_json:
        print_json({"page": str(path), **plain(findings), "predictions": plain(predictions)})
    else:
        click.echo(f"Written: {shown(path)}. Models: {findings.models:,}, of which {findings.ran:,} were run.")
        click.echo(f"Open it in a browser: {path.resolve().as_uri()}")
