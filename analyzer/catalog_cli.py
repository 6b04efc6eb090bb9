"""The commands of `superweight catalog`: parse, call, render; nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from analyzer.errors import shown
from analyzer.options import catalog_option, json_option, known_option, print_json, quiet_option, token_option


@click.group()
def catalog() -> None:
    """List, show, export, validate and publish catalog entries.

    \b
    Example:
      superweight catalog list
    """


@catalog.command("list")
@known_option
@json_option
def catalog_list(folder: Path | None, as_json: bool) -> None:
    """List every entry, and apart from those what others report.

    \b
    Example:
      superweight catalog list --catalog ./catalog
    """
    from analyzer.catalog import entries_in, known_documents, reported_in
    from analyzer.render_catalog import render_catalog

    documents = known_documents(folder)
    entries, reported = entries_in(documents), reported_in(documents)
    if as_json:
        print_json(_as_json(entries, reported))
    else:
        click.echo(render_catalog(entries, reported))


@catalog.command("show")
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
    from analyzer.catalog import known_documents, lookup
    from analyzer.render_catalog import render_entry, render_reported

    entries, reported = lookup(known_documents(folder), model)
    if as_json:
        print_json(_as_json(entries, reported))
    else:
        sections = [render_entry(family, entry) for family, entry in entries]
        click.echo("\n\n".join([*sections, *([render_reported(reported)] if reported else [])]))


@catalog.command("export")
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
    from analyzer.catalog import coordinates_in, known_documents, names_of
    from analyzer.export import export_csv, export_recipe, export_rows, said_of_none, selected

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


@catalog.command("site")
@click.argument("destination", metavar="DIR", type=click.Path(path_type=Path))
@catalog_option
@json_option
def catalog_site(destination: Path, folder: Path, as_json: bool) -> None:
    """Write the catalog as a static web page into DIR, which opens from the disk and from a Space.

    An index.html that it did not write is left alone, and so is everything else that is there.

    \b
    Example:
      superweight catalog site ./site
    """
    from analyzer.catalog import entries_in, reported_in
    from analyzer.site import PAGE, read_what_to_show, render_site, write_site

    documents = read_what_to_show(folder)
    written = write_site(render_site(documents), destination)
    entries, reported = len(entries_in(documents)), len(reported_in(documents))
    page = destination / PAGE
    if as_json:
        print_json(
            {"page": str(page), "files": [str(path) for path in written], "entries": entries, "reported": reported}
        )
    else:
        click.echo(f"Written: {shown(page)}. Entries: {entries}, reported by others: {reported}.")
        click.echo(f"Open it in a browser: {page.resolve().as_uri()}")


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
    from analyzer.catalog import read_documents, reported_in, validate

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


def _dataset_id(_ctx: click.Context, param: click.Parameter, value: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise click.BadParameter(f"{shown(value, 80)!r} is no name of a dataset, owner/name", param=param) from error
    if "/" not in value:
        raise click.BadParameter(f"{value!r} has no owner: give owner/name", param=param)
    return value


@catalog.command("publish")
@click.option(
    "--repo-id", required=True, metavar="OWNER/NAME", callback=_dataset_id, help="Dataset on the Hub, made if missing."
)
@catalog_option
@click.option("--dry-run", is_flag=True, help="Show what would change, and upload nothing; needs no token.")
@click.option("--private", is_flag=True, help="If the dataset is made now, make it a private one.")
@click.option("--replace", is_flag=True, help="Overwrite also what the dataset holds and this catalog lacks.")
@token_option
@json_option
@quiet_option
def catalog_publish(
    repo_id: str,
    folder: Path,
    dry_run: bool,
    private: bool,
    replace: bool,
    token: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish the catalog as a dataset on the Hub, in one commit: the files, one flat table, and a card.

    Nothing is uploaded where nothing changed. What the dataset holds and this catalog lacks is not overwritten.

    \b
    Examples:
      superweight catalog publish --repo-id me/super-weights --dry-run
      superweight catalog publish --repo-id me/super-weights
    """
    from dataclasses import asdict

    from analyzer.progress import progress_bars

    with progress_bars(quiet):
        from analyzer.publish import publish
        from analyzer.render_publish import render_publication

        done = publish(folder, repo_id, token=token, dry_run=dry_run, private=private, replace=replace)
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(render_publication(done, private=private))


def _as_json(entries: list[tuple[str, dict[str, Any]]], reported: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        "entries": [{"family": family, **entry} for family, entry in entries],
        "reported": [{"family": family, **item} for family, item in reported],
    }
