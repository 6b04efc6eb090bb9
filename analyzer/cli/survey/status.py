"""`superweight survey status`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.cli.options import json_option
from analyzer.cli.output import print_json
from analyzer.cli.survey.options import folder_argument


@click.command("status")
@folder_argument
@json_option
def survey_status(folder: Path, as_json: bool) -> None:
    """Show how far a survey is: what is done, what failed and why, what is in hand and what is missing.

    \b
    Example:
      superweight survey status survey
    """
    from dataclasses import asdict

    from analyzer.survey.results.status import render_status, status_of

    status = status_of(folder)
    if as_json:
        print_json(asdict(status))
    else:
        click.echo(render_status(status, folder))
