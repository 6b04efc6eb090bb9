"""The click commands: parse, call, render; nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from analyzer import __version__
from analyzer.errors import shown
from analyzer.progress import progress_bars

if TYPE_CHECKING:
    from analyzer.records import VerifyResult

Command = TypeVar("Command", bound=Callable[..., Any])

PAPER_PROMPT = "Apple Inc. is a worldwide tech company."  # of arXiv 2411.07191


class Layers(click.ParamType[tuple[range, ...]]):
    """Layer numbers and ranges of them, such as 0-10,24."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[range, ...]:
        """Return one range for each part."""
        ranges = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{shown(part)!r} is neither a layer nor a range such as 0-10", param, ctx)
            ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
        return tuple(ranges)


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Apply options in the order in which help shows them."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _device(_ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,2})?", value, re.ASCII):
        raise click.BadParameter(f"{shown(value)!r} is none of auto, cpu, cuda, cuda:N, mps", param=param)
    return value


def _text(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Let through what can be stored and shown: no half characters, and in a name or a note no control characters."""
    if value is not None and any("\ud800" <= c <= "\udfff" for c in value):
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
    type=click.Choice(["magnitude", "gain"]),
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
catalog_option = click.option(
    "--catalog",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("catalog"),
    show_default=True,
    help="Folder of the catalog.",
)
common_options = with_options(
    click.argument("model"),
    click.option("--revision", help="Branch, tag or commit on the Hub.  [default: the main branch]"),
    click.option("--subfolder", help="Folder of the checkpoint inside the model."),
    token_option,
    json_option,
    quiet_option,
)
run_options = with_options(
    click.option(
        "--prompt", callback=_text, default=PAPER_PROMPT, show_default=True, help="What is run through the model."
    ),
    click.option(
        "--text",
        "text_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Text that the loss is measured on.  [default: the bundled one]",
    ),
    click.option(
        "--prompts",
        "prompts_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Prompts, one a line, that super activations are looked for in too.  [default: a bundled set]",
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        metavar="FILE.png",
        help="Draw each layer's largest values, and the super activation with and without its weight.",
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
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto: float32 on a CPU, else the checkpoint's own.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="superweight")
def cli() -> None:
    """Find, verify and catalog the super weights of large language models.

    MODEL is a Hub id (owner/name or owner/name@revision) or a local folder with safetensors.

    \b
    Example:
      superweight analyze HuggingFaceTB/SmolLM2-135M
    """


@cli.command()
@common_options
@top_option
@score_option
@click.option("--layers", type=Layers(), metavar="0-10,24", help="Only these layers.  [default: all]")
@click.option(
    "--tensors",
    "pattern",
    metavar="PATTERN",
    help="Take the tensors of these names, such as 'blk.*.ffn_down', for down projections; the first number is the "
    "layer, a second the expert.",
)
@cache_option
def scan(
    as_json: bool,
    quiet: bool,
    top: int,
    score: str,
    layers: tuple[range, ...] | None,
    pattern: str | None,
    use_cache: bool,
    **where: Any,
) -> None:
    """Rank the outlier weights of every down projection, without running anything.

    Reads only the down projections, also from the Hub, and of those only what no earlier scan has read.

    \b
    Examples:
      superweight scan mistralai/Mistral-7B-v0.1
      superweight scan openai/gpt-oss-20b --score gain
      superweight scan ./my-model --top 5 --json | jq '.outliers[0]'
    """
    from analyzer.analyze import run_scan
    from analyzer.render import render_scan
    from analyzer.source import open_source

    with progress_bars(quiet) as progress:
        source = open_source(**where)
        result = run_scan(
            source, layers=layers, pattern=pattern, score=score, top=top, use_cache=use_cache, progress=progress
        )
    missing = sorted(set(range(result.num_layers)) - {tensor.layer for tensor in result.tensors})
    if layers is None and missing:
        names = ", ".join(map(str, missing[:5])) + (", …" if missing[5:] else "")
        click.echo(f"warning: no down projection in layer {names}: not an MLP block, or not in the index", err=True)
    _print(result, as_json, render_scan)


@cli.command()
@common_options
@run_options
@click.option(
    "--early-stop",
    is_flag=True,
    help="Stop once a super activation has persisted two blocks, reading no more; no effects are measured.",
)
def verify(
    as_json: bool,
    quiet: bool,
    prompt: str,
    text_file: Path | None,
    prompts_file: Path | None,
    plot: Path | None,
    early_stop: bool,
    device: str,
    dtype: str,
    **where: Any,
) -> None:
    """Run one prompt through the model: which weights are super weights, and what zeroing them does.

    The weights come block by block: a model may be larger than memory.

    \b
    Examples:
      superweight verify ./my-model
      superweight verify HuggingFaceTB/SmolLM2-135M --json | jq '.super_weights[0]'
      superweight verify mistralai/Mistral-7B-v0.1 --early-stop
    """
    from analyzer.analyze import evaluation_text, read_prompts, read_text, run_verify
    from analyzer.render import render_verify
    from analyzer.source import open_source

    text = read_text(text_file) if text_file else evaluation_text()
    prompts = read_prompts(prompts_file) if prompts_file or not early_stop else []
    with progress_bars(quiet) as progress:
        source = open_source(**where)
        *_, result = run_verify(
            source,
            prompt=prompt,
            text=text,
            prompts=prompts,
            early_stop=early_stop,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    _plot(result, plot)
    _print(result, as_json, render_verify)


@cli.command()
@common_options
@top_option
@score_option
@run_options
@catalog_option
@click.option("--family", help="Family, and so file, of the entry.  [default: from the model's name]")
@click.option(
    "--model-id", callback=_text, help="Name of a local folder's model, as owner/name.  [default: the folder's name]"
)
@click.option("--note", callback=_text, help="A sentence kept in the entry, such as where the weights came from.")
def analyze(
    as_json: bool,
    quiet: bool,
    top: int,
    score: str,
    prompt: str,
    text_file: Path | None,
    prompts_file: Path | None,
    plot: Path | None,
    device: str,
    dtype: str,
    folder: Path,
    family: str | None,
    model_id: str | None,
    note: str | None,
    **where: Any,
) -> None:
    """Scan, verify, and write the catalog entry.

    \b
    Examples:
      superweight analyze HuggingFaceTB/SmolLM2-135M
      superweight analyze ./my-model --model-id me/my-model --catalog ./catalog
    """
    from analyzer.analyze import evaluation_text, read_prompts, read_text, run_analyze
    from analyzer.catalog import check_destination, family_of, save_entry
    from analyzer.records import plain
    from analyzer.render import render_verify
    from analyzer.source import open_source

    text = read_text(text_file) if text_file else evaluation_text()
    prompts = read_prompts(prompts_file)
    with progress_bars(quiet) as progress:
        source = open_source(**where, model_id=model_id)
        family = family or family_of(source.model)
        check_destination(folder, family)  # before minutes of work
        scanned, result, entry = run_analyze(
            source,
            prompt=prompt,
            text=text,
            prompts=prompts,
            score=score,
            top=top,
            note=note,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    _plot(result, plot)
    path: Path | None = None
    try:
        path = save_entry(folder, family, entry)
    finally:  # a full disk must not cost the result as well
        if as_json:
            catalog_file = str(path) if path else None
            _print_json({**plain(result), "outliers": plain(scanned.outliers), "catalog_file": catalog_file})
        else:
            click.echo(render_verify(result, path))


@cli.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@top_option
@score_option
@cache_option
@token_option
@json_option
@quiet_option
def diff(
    old: str, new: str, top: int, score: str, use_cache: bool, token: str | None, as_json: bool, quiet: bool
) -> None:
    """Show what changed between two versions' outliers and super weights.

    A and B are models, revisions of one (owner/name@revision), or results saved with --json. Super weights are
    compared where both are results saved by verify or analyze.

    \b
    Examples:
      superweight diff EleutherAI/pythia-410m@step1000 EleutherAI/pythia-410m@step143000
      superweight diff before.json after.json
    """
    from analyzer.analyze import open_side
    from analyzer.diff import compare
    from analyzer.records import plain
    from analyzer.render import render_diff

    with progress_bars(quiet) as progress:
        sides = [
            open_side(name, token=token, score=score, top=top, use_cache=use_cache, progress=progress)
            for name in (old, new)
        ]
    result = compare(*sides)
    if as_json:
        _print_json({**plain(result), "identical": result.identical})
    else:
        click.echo(render_diff(result))


@cli.command()
@click.option("--clear", is_flag=True, help="Delete every entry.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Show where the results of scanned tensors of the Hub are kept, and how much they take.

    \b
    Example:
      superweight cache --clear
    """
    from analyzer.cache import ResultCache, cache_folder

    kept = ResultCache(cache_folder())
    entries, size = kept.clear() if clear else kept.size()
    if as_json:
        _print_json({"folder": str(kept.folder), "entries": entries, "bytes": size, "cleared": clear})
    else:
        click.echo(f"{'Cleared' if clear else 'Kept in'} {shown(kept.folder)}: {entries:,} entries, {size:,} bytes.")


@cli.group()
def catalog() -> None:
    """List, show and validate catalog entries.

    \b
    Example:
      superweight catalog list
    """


@catalog.command("list")
@catalog_option
@json_option
def catalog_list(folder: Path, as_json: bool) -> None:
    """List every entry.

    \b
    Example:
      superweight catalog list --catalog ./catalog
    """
    from analyzer.catalog import read_catalog
    from analyzer.render import render_catalog

    entries = read_catalog(folder)
    if as_json:
        _print_json({"entries": [{"family": family, **entry} for family, entry in entries]})
    else:
        click.echo(render_catalog(entries))


@catalog.command("show")
@click.argument("model")
@catalog_option
@json_option
def catalog_show(model: str, folder: Path, as_json: bool) -> None:
    """Show the entries of one model, or of one model@commit.

    \b
    Example:
      superweight catalog show SmolLM2-135M-Instruct-Q4_1
    """
    from analyzer.catalog import find, read_catalog
    from analyzer.render import render_entry

    entries = find(read_catalog(folder), model)
    if as_json:
        _print_json({"entries": [{"family": family, **entry} for family, entry in entries]})
    else:
        click.echo("\n\n".join(render_entry(family, entry) for family, entry in entries))


@catalog.command("validate")
@catalog_option
@json_option
@click.pass_context
def catalog_validate(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Check every file: its JSON, its schema, and its coordinates against the model's sizes.

    \b
    Example:
      superweight catalog validate
    """
    from analyzer.catalog import validate

    files, entries, problems = validate(folder)
    if as_json:
        _print_json({"files": files, "entries": entries, "valid": not problems, "problems": problems})
    elif not problems:
        click.echo(f"All valid. Files: {files}, entries: {entries}.")
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    ctx.exit(1 if problems else 0)


def _plot(result: VerifyResult, path: Path | None) -> None:
    if path is not None:
        from analyzer.plots import plot_verification

        plot_verification(result, path)


def _print(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    from analyzer.records import plain

    if as_json:
        _print_json(plain(result))
    else:
        click.echo(render(result))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))
