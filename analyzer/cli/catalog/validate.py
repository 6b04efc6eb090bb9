"""`superweight catalog validate`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.base.errors import shown
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
    from analyzer.catalog.files import left_in, read_documents, validate
    from analyzer.catalog.lookup import reported_in

    files, entries, problems = validate(folder)
    reported = 0 if problems else len(reported_in(read_documents(folder)))
    left = left_in(folder)
    if as_json:
        counts = {"files": files, "entries": entries, "reported": reported}
        print_json({**counts, "valid": not problems, "problems": problems, "leftovers": left})
    elif not problems:
        more = f", reported by others: {reported}" if reported else ""
        click.echo(f"All valid. Files: {files}, entries: {entries}{more}.")
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    for name in left:
        click.echo(f"warning: {shown(folder / name)} is left of a writer that was killed: the next clears it", err=True)
    ctx.exit(1 if problems else 0)
