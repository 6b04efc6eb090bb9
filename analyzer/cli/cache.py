"""`superweight cache`."""

from __future__ import annotations

import click

from analyzer.base.errors import shown
from analyzer.cli.options import json_option
from analyzer.cli.output import print_json


@click.command()
@click.option("--clear", is_flag=True, help="Delete every entry.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Show where the results of scanned tensors of the Hub are kept, and how much they take.

    \b
    Example:
      superweight cache --clear
    """
    from analyzer.scan.kept import ResultCache, cache_folder

    kept = ResultCache(cache_folder())
    entries, size = kept.clear() if clear else kept.size()
    if as_json:
        print_json({"folder": str(kept.folder), "entries": entries, "bytes": size, "cleared": clear})
    else:
        click.echo(f"{'Cleared' if clear else 'Kept in'} {shown(kept.folder)}: {entries:,} entries, {size:,} bytes.")
