"""What commands print: one JSON object, or text; and the pictures that they draw."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import AnalyzerError, shown

if TYPE_CHECKING:
    from analyzer.base.records import Unread
    from analyzer.diff.records import UnreadOf
    from analyzer.verify.records import VerifyResult

DIFFERS = 3  # the exit status where what was compared differs
MAX_SHOWN = 20  # kinds of names that were not read


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


@contextmanager
def printing(show: Callable[[], None]) -> Iterator[None]:
    """Run a block that writes files, then print the result; where a file fails, too: a full disk must not cost both."""
    try:
        yield
    except AnalyzerError:
        with suppress(OSError):  # which must not hide the first failure
            show()
        raise
    show()


def warn_of(unread: Iterable[Unread | UnreadOf], notes: Iterable[str] = (), *, where: Sequence[str] = ()) -> None:
    """Say on stderr, a line each, what was not read of a model and what one should know of a result.

    `where` says of each what was not read in which of several models it is.
    """
    unread = list(unread)
    for each, place in zip(unread[:MAX_SHOWN], where or [""] * MAX_SHOWN, strict=False):
        shape = "" if each.shape is None else f" of shape {list(each.shape)}"
        what = f"{each.count:,} x {shown(each.names, 120)}{shape}{place and f' in {place}'}"
        click.echo(f"warning: not read: {what}: {shown(each.why, 200)}", err=True)
    if len(unread) > MAX_SHOWN:
        click.echo(f"warning: not read: {len(unread) - MAX_SHOWN:,} more kinds of names: --json has them all", err=True)
    for note in notes:
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
