"""`superweight survey plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.text import byte_size, count_of
from analyzer.cli.options import check_text, quiet_option, token_option
from analyzer.cli.survey.options import pin_all

if TYPE_CHECKING:
    from analyzer.survey.planning import Pin


@click.command("plan")
@click.argument("list_file", metavar="[LIST]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--hub", "from_hub", is_flag=True, help="Take models from the Hub's own listing in place of LIST.")
@click.option("--author", callback=check_text, help="With --hub: models of this user or organization.")
@click.option(
    "--tag", "tags", multiple=True, help="With --hub: models with this tag, such as safetensors; may be given again."
)
@click.option("--library", help="With --hub: models of this library, such as transformers.")
@click.option("--search", callback=check_text, help="With --hub: models whose name holds this.")
@click.option(
    "--sort",
    type=click.Choice(["downloads", "likes", "trending_score", "created_at", "last_modified"]),
    help="With --hub: the order in which models are taken, largest or newest first.  [default: the Hub's own]",
)
@click.option("--limit", type=click.IntRange(1), help="With --hub: at most so many models.  [default: 100]")
@token_option
@quiet_option
def survey_plan(
    list_file: Path | None,
    from_hub: bool,
    author: str | None,
    tags: tuple[str, ...],
    library: str | None,
    search: str | None,
    sort: Any,
    limit: int | None,
    token: str | None,
    quiet: bool,
) -> None:
    """Pin each model of LIST to a commit and tell its bytes, from headers alone; the plan goes to stdout.

    LIST has a model a line, such as owner/name@revision, and comments from a # on. All shards share one plan.

    \b
    Examples:
      superweight survey plan models.txt > plan.jsonl
      superweight survey plan --hub --library transformers --sort downloads --limit 1000 > plan.jsonl
    """
    import tempfile

    from analyzer.survey.listing import list_hub
    from analyzer.survey.planning import plan_lines, read_list
    from analyzer.survey.store import Folder
    from analyzer.survey.units import pin_unit
    from analyzer.survey.work.attempts import Terms

    if from_hub == (list_file is not None):
        raise click.UsageError("give either LIST or --hub")
    if not from_hub and any((author, tags, library, search, sort, limit)):
        raise click.UsageError("--author, --tag, --library, --search, --sort and --limit go with --hub")
    names: list[str | Pin]
    if list_file is None:
        wanted = (*tags, *([library] if library else []))
        names = [*list_hub(author=author, tags=wanted, search=search, sort=sort, limit=limit or 100, token=token)]
    else:
        names = read_list(list_file)
    with tempfile.TemporaryDirectory(prefix="superweight-plan-") as folder:
        pins = [pin_unit(name) for name in names if isinstance(name, str)]
        pin_all(Path(folder), pins, Terms(token=token), quiet=quiet)
        lines = plan_lines(Folder(Path(folder)), names)
    for line in lines:
        click.echo(line)
    _say(lines, len(names), quiet)


def _say(lines: list[str], names: int, quiet: bool) -> None:
    """Say on stderr what is in a plan made of so many names, and what of it cannot be opened."""
    import json

    entries = [json.loads(line) for line in lines[1:]]
    pinned = [each for each in entries if "weight_bytes" in each]
    for each in entries:
        if "failure" in each:
            click.echo(f"warning: {each['failure']}: {each['line']}", err=True)
    if not quiet:
        scan = sum(each["weight_bytes"] if each["scan_bytes"] is None else each["scan_bytes"] for each in pinned)
        whole = sum(each["weight_bytes"] for each in pinned)
        same = f" ({names - len(entries):,} more names stand for the same)" if names > len(entries) else ""
        click.echo(
            f"planned {len(pinned):,} of {count_of(len(entries), 'model')}{same}: {byte_size(scan)} to scan, of "
            f"{byte_size(whole)} in all",
            err=True,
        )
