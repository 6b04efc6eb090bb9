"""`superweight experiment`: a command for each of the paper's experiments, made from what it says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from analyzer.base.errors import shown
from analyzer.base.progress import progress_bars
from analyzer.cli.options import (
    Decorator,
    check_text,
    common_options,
    device_options,
    picture_option,
    weight_options,
    with_options,
)
from analyzer.cli.output import check_picture, print_json, printing, warn_of
from analyzer.experiments import bits, prune, scale, tokens
from analyzer.experiments.lab.records import Experiment, Option

EXPERIMENTS = (prune.EXPERIMENT, tokens.EXPERIMENT, scale.EXPERIMENT, bits.EXPERIMENT)

TEXT_OPTIONS = (
    click.option(
        "--data",
        default="wikitext2",
        show_default=True,
        metavar="wikitext2|c4|FILE",
        callback=check_text,
        help="Text that the loss is measured on: a data set of the Hub, or a file (.jsonl: a `text` a line).",
    ),
    click.option("--windows", type=click.IntRange(1), help="How many windows to run.  [default: all]"),
    click.option(
        "--length",
        type=click.IntRange(2),
        help="Tokens of a window.  [default: 2048, or as many as the model has positions]",
    ),
    click.option("--bos", is_flag=True, help="Begin each window with the token that begins a text."),
)
CALIBRATE_OPTION = click.option(
    "--calibrate",
    metavar="FILE",
    callback=check_text,
    help="Text to calibrate on.  [default: the first half of the windows, which are then not judged]",
)
PROMPT_OPTIONS = (
    click.option(
        "--prompts-data",
        default="lambada",
        show_default=True,
        metavar="lambada|FILE",
        callback=check_text,
        help="Passages whose last word is left out: a data set of the Hub, or a file (.jsonl: a `text` a line).",
    ),
    click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="How many passages to run."),
)
SEED_OPTION = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn by chance."
)


@click.group()
def experiment() -> None:
    """Replicate the paper's experiments on any model, with controls and intervals.

    The weights are those named, else those that the catalog knows of the model, else those that a verification finds.

    \b
    Example:
      superweight experiment prune HuggingFaceTB/SmolLM2-135M
    """


def command_of(found: Experiment) -> click.Command:
    """Return the command of an experiment."""
    own = {option.name: option for option in found.options}

    def command(
        as_json: bool, quiet: bool, plot: Path | None, folder: Path | None, token: str | None, **given: Any
    ) -> None:
        from analyzer.experiments.lab.asked import Settings
        from analyzer.experiments.lab.conducting import conduct
        from analyzer.experiments.reports.report import render_experiment
        from analyzer.source.opening import open_model

        check_picture(plot)
        chosen = {name: given.pop(name) for name in own}
        where = {name: given.pop(name) for name in ("model", "revision", "subfolder")}
        settings = Settings(catalog=folder, **given)
        with progress_bars(quiet) as progress:
            source = open_model(**where, token=token)
            result = conduct(source, found, settings, token=token, progress=progress, **chosen)
        with printing(lambda: print_json(result.as_json()) if as_json else click.echo(render_experiment(result))):
            if plot is not None:
                from analyzer.experiments.reports.pictures import plot_experiment

                plot_experiment(result, plot)
        warn_of((), result.notes)

    data = TEXT_OPTIONS if found.needs == "text" else PROMPT_OPTIONS
    data = (*data, CALIBRATE_OPTION) if found.calibrates else data
    options = (common_options, *weight_options, *map(_option, found.options), *data, SEED_OPTION, *device_options)
    command.__doc__ = found.says
    return click.command(found.name, help=inspect.cleandoc(found.says))(
        with_options(*options, picture_option(help="Draw the result."))(command)
    )


def _option(option: Option) -> Decorator:
    def parse(_ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if option.several:
                return tuple(map(option.parse, value)) if value else option.default
            return option.default if value is None else option.parse(value)
        except ValueError as error:
            raise click.BadParameter(f"{shown(error)}: give {option.metavar}", param=param) from error

    default = " ".join(map(str, option.default)) if option.several else str(option.default)
    made: Callable[..., Decorator] = click.option
    return made(
        f"--{option.name.replace('_', '-')}",
        option.name,
        multiple=option.several,
        metavar=option.metavar,
        callback=parse,
        help=f"{option.help}  [default: {default}]",
    )


for each in EXPERIMENTS:
    experiment.add_command(command_of(each))
