"""`superweight catalog` as a whole."""

from __future__ import annotations

import click

from analyzer.cli.catalog.check import catalog_check
from analyzer.cli.catalog.export import catalog_export
from analyzer.cli.catalog.list import catalog_list
from analyzer.cli.catalog.publish import catalog_publish
from analyzer.cli.catalog.show import catalog_show
from analyzer.cli.catalog.site import catalog_site
from analyzer.cli.catalog.validate import catalog_validate


@click.group()
def catalog() -> None:
    """List, show, check, export, validate and publish catalog entries.

    \b
    Example:
      superweight catalog list
    """


for command in (
    catalog_list,
    catalog_show,
    catalog_check,
    catalog_export,
    catalog_site,
    catalog_validate,
    catalog_publish,
):
    catalog.add_command(command)
