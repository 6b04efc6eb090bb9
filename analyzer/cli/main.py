"""The command line as a whole; each command parses, calls and renders, nothing else."""

from __future__ import annotations

import re

import click

from analyzer import __version__
from analyzer.cli.analyze import analyze
from analyzer.cli.cache import cache
from analyzer.cli.catalog.group import catalog
from analyzer.cli.diff import diff
from analyzer.cli.experiment import experiment
from analyzer.cli.scan import scan
from analyzer.cli.survey.group import survey
from analyzer.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="superweight")
def cli() -> None:
    """Find, verify and catalog the super weights of large language models.

    MODEL is a Hub id (owner/name or owner/name@revision), a local folder, or a GGUF file in either.

    \b
    Example:
      superweight analyze HuggingFaceTB/SmolLM2-135M
    """


for command in (scan, verify, analyze, experiment, diff, cache, catalog, survey):
    cli.add_command(command)


def call_it(name: str, command: click.Command = cli) -> None:
    """Let the examples in the help of a command, and of those below it, call the tool by this name."""
    command.help = re.sub(r"(?m)^( +)superweight(?= )", rf"\1{name}", command.help or "")
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        call_it(name, below)
