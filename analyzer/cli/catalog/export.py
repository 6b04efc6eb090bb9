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
    type=click.Choice(["llm-compressor", "gptqmodel", "torchao", "llama.cpp", "channels", "prefix", "json", "csv"]),
    required=True,
    help="What a quantizer takes to leave matrices alone, massive channels by layer, the tokens of a suggested prefix, "
    "or every coordinate.",
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
    """Write what a quantizer or a runtime should protect of a model to stdout.

    What protecting does not change is said on stderr, with the figures.

    \b
    Examples:
      superweight catalog export mistralai/Mistral-7B-v0.1 --format llm-compressor > recipe.yaml
      superweight catalog export SmolLM2-135M-Instruct-Q4_1 --format llama.cpp --critical > types.txt
    """
    from analyzer.base.errors import CatalogError, shown
    from analyzer.base.text import fill
    from analyzer.catalog.exports.channels import channels_of, prefix_of
    from analyzer.catalog.exports.coordinates import export_csv, export_rows, said_of_none, selected
    from analyzer.catalog.exports.pointless import pointless
    from analyzer.catalog.exports.quantizers import gptqmodel_rules, llama_cpp_types, torchao_config
    from analyzer.catalog.exports.recipe import export_recipe
    from analyzer.catalog.files import known_documents
    from analyzer.catalog.lookup import coordinates_in, lookup, names_of

    if form in ("channels", "prefix") and (standings or critical):
        given = "--critical" if critical else "--standing"
        raise click.UsageError(f"{given} is of coordinates and changes nothing of --format {form}: leave it out")
    documents = known_documents(folder)
    names = names_of(documents, model)
    if form in ("channels", "prefix"):
        entries = [entry for _, entry in lookup(documents, model)[0]]
        print_json((channels_of if form == "channels" else prefix_of)(names[0], entries))
        return
    known = coordinates_in(documents, model)
    coordinates = selected(known, standings=standings, critical=critical)
    if not coordinates and form not in ("json", "csv"):
        raise CatalogError(f"{shown(' and '.join(names))}: {said_of_none(known)}")
    if form in ("json", "csv"):
        if not coordinates:
            click.echo(f"warning: {said_of_none(known)}", err=True)
        if form == "json":
            print_json({"model": names[0] if len(names) == 1 else names, "coordinates": export_rows(coordinates)})
        else:
            click.echo(export_csv(coordinates), nl=False)
        return
    if form == "llm-compressor":
        click.echo(export_recipe(" and ".join(names), coordinates), nl=False)
        return  # it says itself what is pointless
    if form == "llama.cpp":
        click.echo(llama_cpp_types(coordinates), nl=False)
    else:
        print_json((gptqmodel_rules if form == "gptqmodel" else torchao_config)(coordinates))
    for note in pointless(coordinates):
        click.echo(fill(f"note: {note}"), err=True)
