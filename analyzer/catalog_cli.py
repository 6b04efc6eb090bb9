"""The commands of `superweight catalog`: parse, call, render; nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.options import catalog_option, json_option, print_json


@click.group()
def catalog() -> None:
    """List, show and validate catalog entries.

    \b
    Example:
      superweight catalog list
    """


@catalog.command("list")
@catalog_option
@json_option
def catalog_list(folder: Path, as_json: bool) -> None:
    """List every entry.

    \b
    Example:
      superweight catalog list --catalog ./catalog
    """
    from analyzer.catalog import read_catalog
    from analyzer.render import render_catalog

    entries = read_catalog(folder)
    if as_json:
        print_json({"entries": [{"family": family, **entry} for family, entry in entries]})
    else:
        click.echo(render_catalog(entries))


@catalog.command("show")
@click.argument("model")
@catalog_option
@json_option
def catalog_show(model: str, folder: Path, as_json: bool) -> None:
    """Show the entries of one model, or of one model@commit.

    \b
    Example:
      superweight catalog show SmolLM2-135M-Instruct-Q4_1
    """
    from analyzer.catalog import find, read_catalog
    from analyzer.render import render_entry

    entries = find(read_catalog(folder), model)
    if as_json:
        print_json({"entries": [{"family": family, **entry} for family, entry in entries]})
    else:
        click.echo("\n\n".join(render_entry(family, entry) for family, entry in entries))


@catalog.command("validate")
@catalog_option
@json_option
@click.pass_context
def catalog_validate(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Check every file: its JSON, its schema, and its coordinates against the model's sizes.

    \b
    Example:
      superweight catalog validate
    """
    from analyzer.catalog import validate

    files, entries, problems = validate(folder)
    if as_json:
        print_json({"files": files, "entries": entries, "valid": not problems, "problems": problems})
    elif not problems:
        click.echo(f"All valid. Files: {files}, entries: {entries}.")
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    ctx.exit(1 if problems else 0)
