"""What the commands of `superweight survey` share: their folder, sizes, shards, and the running of units."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import shown

if TYPE_CHECKING:
    from analyzer.survey.running import Tally
    from analyzer.survey.units import Unit
    from analyzer.survey.work.attempts import Terms
    from analyzer.survey.work.local import Engine

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
folder_argument = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


class Bytes(click.ParamType[int]):
    """A number of bytes, such as 500MB or 16GB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)b?", str(value).strip().lower(), re.ASCII)
        if match is None or not (count := int(float(match[1]) * UNITS[match[2]])):
            self.fail(f"{shown(value)!r} is no number of bytes such as 500MB or 16GB", param, ctx)
        return count


class Seconds(click.ParamType[float]):
    """A time that ends, such as 3600 or 0.5."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            self.fail(f"{shown(value)!r} is no number of seconds such as 3600, above 0", param, ctx)
        return seconds


class Shard(click.ParamType[tuple[int, int]]):
    """One of N parts, such as 3/8."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return which part, from 1 on, of how many."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value), re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{shown(value)!r} is no part of several such as 3/8", param, ctx)
        return int(match[1]), int(match[2])


def run_all(
    what: str,
    out: Path,
    units: Sequence[Unit],
    terms: Terms,
    *,
    do: str,
    device: str = "auto",
    ray: bool = False,
    ray_address: str | None = None,
    quiet: bool,
) -> Tally:
    """Run units on this machine or on Ray, telling how far it is; KeyboardInterrupt says that somebody had enough."""
    from analyzer.survey.running import run_units
    from analyzer.survey.telling import Teller
    from analyzer.survey.work.local import LocalEngine, places_for

    teller = Teller(what, quiet=quiet)
    opened: AbstractContextManager[Engine]
    if ray and units:
        from analyzer.survey.work.cluster import ray_engine

        opened = ray_engine(out, terms, do=do, device=device, address=ray_address)
    else:
        opened = nullcontext(LocalEngine(out, terms, places_for(do, device) if units else [{}]))
    try:
        with opened as engine:
            tally = run_units(units, engine, tell=teller, say=teller.say)
    finally:
        teller.clear()
    if tally.interrupted:
        raise KeyboardInterrupt
    return tally


def pin_all(out: Path, pins: Sequence[Unit], terms: Terms, *, quiet: bool) -> None:
    """Find out what names stand for, as far as nobody has. Raises KeyboardInterrupt as run_all does."""
    from analyzer.survey.store import Folder
    from analyzer.survey.units import PIN
    from analyzer.survey.work.attempts import still_to_do

    run_all("planning", out, still_to_do(Folder(out), pins, terms), terms, do=PIN, quiet=quiet)
