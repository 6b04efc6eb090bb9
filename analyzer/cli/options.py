"""The options that commands share; those of a scan and of a verification come to a command as one record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from analyzer.base.errors import shown
from analyzer.base.records import Coordinate, Unit
from analyzer.base.settings import DEVICE, DTYPES, SCORES, is_text
from analyzer.verify.settings import PAPER_PROMPT

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_options(*options: Decorator) -> Decorator:
    """Apply options in the order in which help shows them."""

    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _device(_ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not DEVICE.fullmatch(value):
        raise click.BadParameter(f"{shown(value)!r} is none of auto, cpu, cuda, cuda:N, mps", param=param)
    return value


def check_text(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Let through what can be stored and shown: no half characters, and in a name or a note no control characters."""
    if value is not None and not is_text(value):
        raise click.BadParameter("is not text in UTF-8", param=param)
    if value is not None and param.name != "prompt" and (len(value) > 2000 or not value.isprintable()):
        raise click.BadParameter("must be one line of at most 2000 printable characters", param=param)
    return value


token_option = click.option("--token", help="Hub access token.  [default: the Hub client's own]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
top_option = click.option(
    "--top", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Outliers kept, over the whole model."
)
score_option = click.option(
    "--score",
    type=click.Choice(SCORES),
    default="magnitude",
    show_default=True,
    help="What ranks a weight: |W|, or what |W| can amplify, for three times the bytes.",
)
cache_option = click.option(
    "--no-cache",
    "use_cache",
    flag_value=False,
    default=True,
    help="Neither use nor keep the results of single tensors of the Hub.",
)
_catalog = partial(click.option, "--catalog", "folder", type=click.Path(file_okay=False, path_type=Path))
catalog_option = _catalog(default=Path("catalog"), show_default=True, help="Folder of the catalog.")
known_option = _catalog(help="Folder of the catalog.  [default: catalog, and the record that comes with the tool]")
common_options = with_options(
    click.argument("model"),
    click.option("--revision", help="Branch, tag or commit on the Hub.  [default: the main branch]"),
    click.option("--subfolder", help="Folder of the checkpoint inside the model."),
    token_option,
    json_option,
    quiet_option,
)
early_stop_option = click.option(
    "--early-stop",
    is_flag=True,
    help="Stop once a super activation has persisted two blocks, reading no more; no effects are measured.",
)


def _parsed(parse: Callable[[str], Any], grammar: str) -> Callable[..., tuple[Any, ...]]:
    """Return the callback of an option whose values are made of text by `parse`, which raises ValueError."""

    def parsed(_ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[Any, ...]:
        try:
            return tuple(map(parse, values))
        except ValueError as error:
            raise click.BadParameter(f"{shown(error)}: give {grammar}", param=param) from error

    return parsed


def _weight_or_unit(text: str) -> Coordinate | Unit:
    return Unit.parse(text) if "any" in text.rpartition(":")[2] else Coordinate.parse(text)


_weight = partial(click.option, "--weight", "weights", multiple=True, metavar="COORDINATE")
_weights_of = click.option(
    "--weights-of", metavar="MODEL", callback=check_text, help="The same with what the catalog knows of a model."
)
weight_options = (
    _weight(
        callback=_parsed(Coordinate.parse, "[TOWER:]LAYER[.MLP][,EXPERT],ROW,COL"),
        help="Look at this weight, [TOWER:]LAYER[.MLP][,EXPERT],ROW,COL, and search for none; may be given again.",
    ),
    _weights_of,
    known_option,
)
weight_and_unit_options = (
    _weight(
        callback=_parsed(_weight_or_unit, "[TOWER:]LAYER[.MLP][,EXPERT],ROW,COL, ROW or COL may be any"),
        help="Look at this weight, [TOWER:]LAYER[.MLP][,EXPERT],ROW,COL, and search for none; with any as COL at "
        "the whole row, with any as ROW at the whole column. May be given again.",
    ),
    click.option(
        "--expert",
        "experts",
        multiple=True,
        metavar="EXPERT",
        callback=_parsed(Unit.parse_expert, "[TOWER:]LAYER[.MLP],EXPERT"),
        help="The same with a whole expert, [TOWER:]LAYER[.MLP],EXPERT: what it gives is zeroed, the router kept.",
    ),
    _weights_of,
    known_option,
)
picture_option = partial(
    click.option, "--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE.png"
)
plot_option = picture_option(
    help="Draw each layer's largest values, and the super activation with and without its weight."
)
device_options = (
    click.option(
        "--tower",
        callback=check_text,
        metavar="NAME",
        help="Which of several towers to judge, as scan names them.  [default: the one that makes text]",
    ),
    click.option(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda[:N]|mps",
        show_default=True,
        callback=_device,
        help="Where to run.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="auto: float32 on a CPU, else the checkpoint's own.",
    ),
)
more_option = click.option(
    "--more",
    is_flag=True,
    help="Of critical weights also: halved, zeroed two at a time, and their whole rows and columns.",
)
_verify_options = (
    click.option(
        "--prompt", callback=check_text, default=PAPER_PROMPT, show_default=True, help="What is run through the model."
    ),
    click.option(
        "--text",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Text that the loss is measured on.  [default: the bundled one]",
    ),
    click.option(
        "--prompts",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Prompts, one a line, that super activations are looked for in too.  [default: a bundled set]",
    ),
    *device_options,
)


def scan_options(*options: Decorator, name: str = "settings") -> Decorator:
    """Apply these options of a scan, and hand what they give to the command as ScanSettings of this name."""

    def make(**chosen: Any) -> Any:
        from analyzer.scan.records import ScanSettings

        return ScanSettings(**chosen)

    return _gathered(name, make, options)


def verify_options(*more: Decorator) -> Decorator:
    """Apply the options of a verification and these, and hand what they give to the command as `settings`."""

    def make(
        *,
        text: Path | None,
        prompts: Path | None,
        weights_of: str | None = None,
        folder: Path | None = None,
        experts: Sequence[Unit] = (),
        **chosen: Any,
    ) -> Any:
        from analyzer.catalog.lookup import weights_known_of
        from analyzer.verify.settings import VerifySettings, read_prompts, read_text

        asked = chosen.pop("weights", ())
        if chosen.get("early_stop") and (asked or experts or weights_of is not None):
            raise click.UsageError("--early-stop searches: leave it out where weights or experts are asked for")
        if chosen.get("early_stop") and chosen.get("more"):
            raise click.UsageError("--early-stop runs no text, on which --more is measured: give one of them")
        chosen["weights"] = tuple(each for each in asked if isinstance(each, Coordinate))
        chosen["units"] = (*(each for each in asked if isinstance(each, Unit)), *experts)
        if weights_of is not None:
            known = weights_known_of(weights_of, folder=folder)
            chosen["weights"] = tuple(dict.fromkeys((*chosen["weights"], *known)))
        if text is not None:
            chosen["text"] = read_text(text)
        if prompts is not None:
            chosen["prompts"] = read_prompts(prompts)
        return VerifySettings(**chosen)

    return _gathered("settings", make, (*_verify_options, *more))


def _gathered(into: str, make: Callable[..., Any], options: Sequence[Decorator]) -> Decorator:
    """Apply options, and hand all that they give to the command as one record."""
    apply = with_options(*options)
    names = [parameter.name for parameter in click.command()(apply(lambda **_: None)).params]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathering(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in names}
            return command(**{into: make(**chosen)}, **values)

        return apply(gathering)

    return decorate
