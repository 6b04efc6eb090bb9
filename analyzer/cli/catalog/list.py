"""`superweight catalog list`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.cli.catalog.output import records_json
from analyzer.cli.options import json_option, known_option
from analyzer.cli.output import print_json


@click.command("list")
@known_option
@json_option
def catalog_list(folder: Path | None, as_json: bool) -> None:
    """List every entry, and apart from those what others report.

    \b
    Example:
      superweight catalog list --catalog ./catalog
    """
    from analyzer.catalog.files import known_documents
    from analyzer.catalog.lookup import entries_in, reported_in
    from analyzer.catalog.report import render_catalog

    documents = known_documents(folder)
    entries, reported = entries_in(documents), reported_in(documents)
    if as_json:
        print_json(records_json(entries, reported))
    else:
        click.echo(render_catalog(entries, reported))
