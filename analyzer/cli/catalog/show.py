"""`superweight catalog show`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.cli.catalog.output import records_json
from analyzer.cli.options import json_option, known_option
from analyzer.cli.output import print_json


@click.command("show")
@click.argument("model")
@known_option
@json_option
def catalog_show(model: str, folder: Path | None, as_json: bool) -> None:
    """Show what is known of one model, or of one model@commit: entries, and what others report.

    MODEL is the name or the part of it after the slash, in any case.

    \b
    Examples:
      superweight catalog show mistralai/Mistral-7B-v0.1
      superweight catalog show SmolLM2-135M-Instruct-Q4_1 --json | jq '.entries[0].super_weights[0]'
    """
    from analyzer.catalog.files import known_documents
    from analyzer.catalog.lookup import lookup
    from analyzer.catalog.report import render_entry, render_reported

    entries, reported = lookup(known_documents(folder), model)
    if as_json:
        print_json(records_json(entries, reported))
    else:
        sections = [render_entry(family, entry) for family, entry in entries]
        click.echo("\n\n".join([*sections, *([render_reported(reported)] if reported else [])]))
