"""`superweight catalog validate`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.cli.options import catalog_option, json_option
from analyzer.cli.output import print_json


@click.command("validate")
@catalog_option
@json_option
@click.pass_context
def catalog_validate(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Check every file: its JSON, its schema, and its coordinates against the model's sizes.

    \b
    Example:
      superweight catalog validate
    """
    from analyzer.catalog.files import read_documents, validate
    from analyzer.catalog.lookup import reported_in

    files, entries, problems = validate(folder)
    reported = 0 if problems else len(reported_in(read_documents(folder)))
    if as_json:
        print_json(
            {"files": files, "entries": entries, "reported": reported, "valid": not problems, "problems": problems}
        )
    elif not problems:
        more = f", reported by others: {reported}" if reported else ""
        click.echo(f"All valid. Files: {files}, entries: {entries}{more}.")
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    ctx.exit(1 if problems else 0)
