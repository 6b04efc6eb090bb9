"""`superweight catalog export`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.cli.options import known_option
from analyzer.cli.output import print_json


@click.command("export")
@click.argument("model")
@click.option(
    "--format",
    "form",
    type=click.Choice(["llm-compressor", "json", "csv"]),
    required=True,
    help="A recipe that leaves whole modules alone, or every coordinate.",
)
@click.option(
    "--standing",
    "standings",
    type=click.Choice(["verified", "reported", "disputed"]),
    multiple=True,
    help="Only coordinates of this standing; may be given again.  [default: all]",
)
@click.option("--critical", is_flag=True, help="Of the verified ones, only those whose zeroing costs the model.")
@known_option
def catalog_export(model: str, form: str, standings: tuple[str, ...], critical: bool, folder: Path | None) -> None:
    """Write the coordinates of a model that a quantizer should protect to stdout.

    \b
    Examples:
      superweight catalog export mistralai/Mistral-7B-v0.1 --format llm-compressor > recipe.yaml
      superweight catalog export SmolLM2-135M-Instruct-Q4_1 --format csv --critical
    """
    from analyzer.catalog.export import export_csv, export_recipe, export_rows, said_of_none, selected
    from analyzer.catalog.files import known_documents
    from analyzer.catalog.lookup import coordinates_in, names_of

    documents = known_documents(folder)
    names, known = names_of(documents, model), coordinates_in(documents, model)
    coordinates = selected(known, standings=standings, critical=critical)
    if form == "llm-compressor":
        click.echo(export_recipe(" and ".join(names), coordinates), nl=False)
        return
    if not coordinates:
        click.echo(f"warning: {said_of_none(known)}", err=True)
    if form == "json":
        print_json({"model": names[0] if len(names) == 1 else names, "coordinates": export_rows(coordinates)})
    else:
        click.echo(export_csv(coordinates), nl=False)
