"""What commands print: one JSON object, or text; and the pictures that they draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import shown

if TYPE_CHECKING:
    from analyzer.scan.records import ScanResult
    from analyzer.verify.records import VerifyResult


def print_json(value: Any) -> None:
    """Print the one JSON object that a command has on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def print_result(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a record as JSON, or as the text that `render` makes of it."""
    from analyzer.base.records import plain

    if as_json:
        print_json(plain(result))
    else:
        click.echo(render(result))


def warn_of(result: ScanResult) -> None:
    """Say on stderr, a line each, what a scan did not read and what one should know of it."""
    for unread in result.unread:
        shape = "" if unread.shape is None else f" of shape {list(unread.shape)}"
        count = f"{unread.count:,} x {shown(unread.names, 120)}{shape}"
        click.echo(f"warning: not read: {count}: {shown(unread.why, 200)}", err=True)
    for note in result.notes:
        click.echo(f"warning: {shown(note, 300)}", err=True)


def check_picture(path: Path | None) -> None:
    """Raise PlotError where no picture could be written there, before minutes of work."""
    if path is not None:
        from analyzer.base.pictures import check_plot

        check_plot(path)


def draw_verification(result: VerifyResult, path: Path | None) -> None:
    """Draw a verification where a picture is wanted. Raises PlotError where it cannot be written."""
    if path is not None:
        from analyzer.verify.pictures import plot_verification

        plot_verification(result, path)
