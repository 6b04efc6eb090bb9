"""`superweight survey collect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from analyzer.base.errors import shown
from analyzer.base.text import count_of
from analyzer.cli.catalog.publish import dataset_id
from analyzer.cli.options import json_option, quiet_option, token_option
from analyzer.cli.output import print_json
from analyzer.cli.survey.options import folder_argument

if TYPE_CHECKING:
    from analyzer.survey.results.collecting import Collected


@click.command("collect")
@folder_argument
@click.option(
    "--catalog",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("catalog"),
    show_default=True,
    help="Folder of the catalog.",
)
@click.option(
    "--publish",
    "repo_id",
    metavar="OWNER/NAME",
    callback=dataset_id,
    help="Publish table and catalog as this dataset on the Hub, made if missing.",
)
@click.option("--dry-run", is_flag=True, help="With --publish: show what would change, and upload nothing.")
@click.option("--private", is_flag=True, help="With --publish: if the dataset is made now, make it a private one.")
@click.option("--replace", is_flag=True, help="With --publish: overwrite also what it holds and is not here.")
@token_option
@json_option
@quiet_option
def survey_collect(
    folder: Path,
    catalog: Path,
    repo_id: str | None,
    dry_run: bool,
    private: bool,
    replace: bool,
    token: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put what a survey has found into one Parquet table in DIR, and what was analyzed into the catalog.

    The table is the same, byte for byte, however the survey was run: no times are in it.

    \b
    Examples:
      superweight survey collect survey --catalog ./catalog
      superweight survey collect survey --publish me/super-weights --dry-run
    """
    from dataclasses import asdict

    from analyzer.base.progress import progress_bars
    from analyzer.publish.publication import publish
    from analyzer.publish.report import render_publication
    from analyzer.survey.results.collecting import TABLE, collect

    if repo_id is None and any((dry_run, private, replace)):
        raise click.UsageError("--dry-run, --private and --replace go with --publish")
    table, collected = collect(folder, catalog)
    done = None
    if repo_id is not None:
        with progress_bars(quiet):
            tables = {f"data/{TABLE}": table}
            done = publish(
                catalog, repo_id, token=token, dry_run=dry_run, private=private, replace=replace, tables=tables
            )
    if as_json:
        print_json({"table": str(folder / TABLE), **asdict(collected), "publication": done and asdict(done)})
    else:
        click.echo(_said(collected, folder / TABLE, catalog))
        if done is not None:
            click.echo(f"\n{render_publication(done, private=private)}")
    for line in collected.refused:
        click.echo(f"warning: {line}", err=True)


def _said(collected: Collected, table: Path, catalog: Path) -> str:
    why = ", ".join(f"{count} {kind}" for kind, count in sorted(collected.failed.items()))
    units = count_of(collected.done, "unit")
    parts = [f"Written: {shown(table)}, {count_of(collected.rows, 'row')} of {units} done"]
    parts += [f"{sum(collected.failed.values()):,} failed ({why})"] * bool(why)
    parts += [f"{collected.missing:,} missing"] * bool(collected.missing)
    entries = f" Entries written to {shown(catalog)}: {collected.entries:,}." if collected.entries else ""
    older = f" Left out, since it has newer ones: {collected.older:,}." if collected.older else ""
    return f"{', '.join(parts)}.{entries}{older}"
