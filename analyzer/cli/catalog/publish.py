"""`superweight catalog publish`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.base.errors import shown
from analyzer.cli.options import catalog_option, json_option, quiet_option, token_option
from analyzer.cli.output import print_json


def dataset_id(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Let through the name of a dataset on the Hub, owner/name."""
    if value is None:
        return None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise click.BadParameter(f"{shown(value, 80)!r} is no name of a dataset, owner/name", param=param) from error
    if "/" not in value:
        raise click.BadParameter(f"{value!r} has no owner: give owner/name", param=param)
    return value


@click.command("publish")
@click.option(
    "--repo-id", required=True, metavar="OWNER/NAME", callback=dataset_id, help="Dataset on the Hub, made if missing."
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

    from analyzer.base.progress import progress_bars

    with progress_bars(quiet):
        from analyzer.publish.publication import publish
        from analyzer.publish.report import render_publication

        done = publish(folder, repo_id, token=token, dry_run=dry_run, private=private, replace=replace)
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(render_publication(done, private=private))
