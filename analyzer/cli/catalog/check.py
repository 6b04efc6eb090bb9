"""`superweight catalog check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from analyzer.base.errors import shown
from analyzer.base.progress import progress_bars
from analyzer.cli.options import common_options, known_option
from analyzer.cli.output import DIFFERS, print_json


@click.command("check")
@common_options
@known_option
def catalog_check(as_json: bool, quiet: bool, folder: Path | None, **where: Any) -> None:
    """Read the known weights of a model, each by itself: are they as recorded, at their commit and today?

    Exits with 3 where a weight has another value or is not there, with 1 where that cannot be told.

    \b
    Examples:
      superweight catalog check mistralai/Mistral-7B-v0.1
      superweight catalog check ./my-model --catalog ./catalog
    """
    from analyzer.analyze.integrity import check_known
    from analyzer.analyze.report import render_integrity
    from analyzer.base.records import plain

    with progress_bars(quiet) as progress:
        result = check_known(**where, catalog=folder, progress=progress)
    if as_json:
        print_json({**plain(result), "differs": result.differs})
    else:
        click.echo(render_integrity(result))
    for why in result.unreadable:
        click.echo(f"error: {shown(why, 300)}", err=True)
    click.get_current_context().exit(DIFFERS if result.differs else 1 if result.unreadable else 0)
