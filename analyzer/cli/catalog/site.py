"""`superweight catalog site`."""

from __future__ import annotations

from pathlib import Path

import click

from analyzer.base.errors import shown
from analyzer.cli.options import catalog_option, json_option
from analyzer.cli.output import print_json


@click.command("site")
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
    from analyzer.catalog.lookup import entries_in, reported_in
    from analyzer.site.page import PAGE, read_what_to_show, render_site, write_site

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
