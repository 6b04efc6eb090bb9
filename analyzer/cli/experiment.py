"""`superweight experiment`: a command for each of the paper's experiments, made from what it says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from analyzer.base.errors import AnalyzerError, shown
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
from analyzer.experiments import bits, massive, prune, quantize, scale, tasks, ticket, tokens
from analyzer.experiments.lab.records import Experiment, Option

EXPERIMENTS = (
    prune.EXPERIMENT,
    tokens.EXPERIMENT,
    scale.EXPERIMENT,
    quantize.EXPERIMENT,
    massive.EXPERIMENT,
    ticket.EXPERIMENT,
    bits.EXPERIMENT,
)
OPTIONAL = (tasks.EXPERIMENT,)
"""Which `all` runs where it is asked to."""


def text_options(*, windows: str, length: str) -> tuple[Decorator, ...]:
    """Return the options of a text and its windows, with what is said to be their default."""
    return (
        click.option(
            "--data",
            default="wikitext2",
            show_default=True,
            metavar="wikitext2|c4|FILE",
            callback=check_text,
            help="Text that the loss is measured on: a data set of the Hub, or a file (.jsonl: a `text` a line).",
        ),
        click.option("--windows", type=click.IntRange(1), help=f"How many windows to run.  [default: {windows}]"),
        click.option(
            "--length",
            type=click.IntRange(2),
            help=f"Tokens of a window.  [default: {length}, or as many as the model has positions]",
        ),
        click.option("--bos", is_flag=True, help="Begin each window with the token that begins a text."),
    )


def prompt_options(*, limit: int) -> tuple[Decorator, ...]:
    """Return the options of passages, so many of them by default."""
    return (
        click.option(
            "--prompts-data",
            default="lambada",
            show_default=True,
            metavar="lambada|FILE",
            callback=check_text,
            help="Passages whose last word is left out: a data set of the Hub, or a file (.jsonl: a `text` a line).",
        ),
        click.option(
            "--limit", type=click.IntRange(1), default=limit, show_default=True, help="How many passages to run."
        ),
    )


CALIBRATE_OPTION = click.option(
    "--calibrate",
    metavar="FILE",
    callback=check_text,
    help="Text to calibrate on.  [default: the first half of the windows, which are then not judged]",
)
STATIC_OPTION = click.option(
    "--static", is_flag=True, help="Tell what the stored weights alone tell; nothing is run, and no text is read."
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
        chosen = {name: given.pop(name) for name in own} | {"static": given.pop("static", False)}
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

    needs = {"text": text_options(windows="all", length="2048"), "prompts": prompt_options(limit=500)}
    data = needs.get(found.needs, ())
    data = (*data, CALIBRATE_OPTION) if found.calibrates else data
    data = (*data, STATIC_OPTION) if found.static else data
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

    several = isinstance(option.default, tuple)
    default = (" " if option.several else ",").join(map(str, option.default)) if several else option.default
    default = "" if default in (None, "") else f"  [default: {default}]"
    made: Callable[..., Decorator] = click.option
    return made(
        f"--{option.name.replace('_', '-')}",
        option.name,
        multiple=option.several,
        metavar=option.metavar,
        callback=parse,
        help=f"{option.help}{default}",
    )


@click.command("all")
@common_options
@with_options(
    click.option(
        "--out",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Folder for the results: new, empty, or of an earlier run.",
    ),
    click.option("--tasks", "with_tasks", is_flag=True, help="Run tasks of lm-evaluation-harness too, an extra."),
    *weight_options,
    *text_options(windows="8", length="1024"),
    CALIBRATE_OPTION,
    *prompt_options(limit=100),
    SEED_OPTION,
    *device_options,
)
@click.pass_context
def experiment_all(
    ctx: click.Context,
    /,
    as_json: bool,
    with_tasks: bool,
    quiet: bool,
    out: Path,
    folder: Path | None,
    token: str | None,
    **given: Any,
) -> None:
    """Run every experiment, and write a page that says which claims hold.

    Into the folder go a JSON file and a picture for each, and index.html, which needs nothing else. An experiment that
    fails is a line of it; the others go on.

    \b
    Examples:
      superweight experiment all ./my-model --out results
      superweight experiment all huggyllama/llama-7b --out results --data c4 --windows 32
    """
    from analyzer.experiments.lab.asked import Settings
    from analyzer.experiments.lab.conducting import conduct_all
    from analyzer.experiments.reports.report import render_summary, summary_of
    from analyzer.site.experiments import Section, check_folder, section_of, write_page, write_section
    from analyzer.source.opening import open_model

    check_folder(out, [each.name for each in (*EXPERIMENTS, *OPTIONAL)])
    chosen = (*EXPERIMENTS, *(OPTIONAL if with_tasks else ()))
    where = {name: given.pop(name) for name in ("model", "revision", "subfolder")}
    settings = Settings(catalog=folder, **given)
    sections = {each.name: Section(each, None) for each in chosen}
    with progress_bars(quiet) as progress:
        source = open_model(**where, token=token)
        for found, result in conduct_all(source, chosen, settings, token=token, progress=progress):
            sections[found.name] = section = section_of(found, result)
            write_section(section, out)
            page = write_page(source, list(sections.values()), out)
    results = {name: section.result for name, section in sections.items() if section.result is not None}
    if as_json:
        print_json({"page": str(page), "experiments": [summary_of(*each) for each in results.items()]})
    else:
        click.echo(f"{render_summary(results)}\n\nAll of it is in {shown(page, 1000)}")
    for name, failed in results.items():
        if isinstance(failed, AnalyzerError):
            click.echo(f"error: {name}: {shown(failed, 1000)}", err=True)
    ctx.exit(any(isinstance(each, AnalyzerError) for each in results.values()))


for each in (*EXPERIMENTS, *OPTIONAL):
    experiment.add_command(command_of(each))
experiment.add_command(experiment_all)
