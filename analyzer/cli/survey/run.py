"""`superweight survey run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.errors import shown
from analyzer.base.text import byte_size, count_of
from analyzer.cli.options import (
    cache_option,
    check_text,
    early_stop_option,
    json_option,
    quiet_option,
    scan_options,
    score_option,
    token_option,
    top_option,
    verify_options,
)
from analyzer.cli.output import print_json
from analyzer.cli.scan import Layers
from analyzer.cli.survey.options import Bytes, Seconds, Shard, pin_all, run_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzer.scan.records import ScanSettings
    from analyzer.survey.running import Tally
    from analyzer.survey.store import Folder
    from analyzer.survey.units import Unit
    from analyzer.verify.settings import VerifySettings

OF_SCAN = ("layers", "pattern")
OF_VERIFY = ("prompt", "text", "prompts", "tower", "device", "dtype", "early_stop")
SHOWN_UNITS = 40


@click.command("run")
@click.argument("list_file", metavar="LIST|PLAN", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the results; several processes and machines may share it.",
)
@click.option(
    "--do", type=click.Choice(["scan", "verify", "analyze"]), default="scan", show_default=True, help="What is done."
)
@scan_options(
    top_option,
    score_option,
    click.option("--layers", type=Layers(), metavar="0-10,24", help="Of a scan: only these layers.  [default: all]"),
    click.option("--tensors", "pattern", metavar="PATTERN", help="Of a scan: take the tensors of these names."),
    cache_option,
    name="scan",
)
@verify_options(early_stop_option)
@click.option("--max-bytes", type=Bytes(), metavar="SIZE", help="Leave out models of which more must be read.")
@click.option("--max-memory", type=Bytes(), metavar="SIZE", help="Memory that one model's processes may take.")
@click.option("--timeout", type=Seconds(), metavar="SECONDS", help="Time for one model.")
@click.option("--shard", type=Shard(), default="1/1", metavar="I/N", help="Do the I-th of N parts.  [default: all]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run models on this machine, or on Ray.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    callback=check_text,
    help="With --engine ray: a cluster, such as 10.0.0.1:6379, or auto.  [default: a Ray of its own here]",
)
@click.option("--retry-failed", is_flag=True, help="Do again what has failed.")
@click.option("--again", is_flag=True, help="Do again also what is done; a LIST's revisions are looked up anew.")
@click.option(
    "--dry-run", is_flag=True, help="Show what would run, in which order, how many bytes: from headers alone."
)
@token_option
@json_option
@quiet_option
@click.pass_context
def survey_run(
    ctx: click.Context,
    list_file: Path,
    out: Path,
    do: str,
    scan: ScanSettings,
    settings: VerifySettings,
    max_bytes: int | None,
    max_memory: int | None,
    timeout: float | None,
    shard: tuple[int, int],
    engine: str,
    ray_address: str | None,
    retry_failed: bool,
    again: bool,
    dry_run: bool,
    token: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do one job on every model of LIST or PLAN, the smallest first, each in a process of its own.

    What is done is not done again, whatever ended the run before; what failed only with --retry-failed. Ctrl-C
    finishes what is in hand, a second one gives it up.

    \b
    Examples:
      superweight survey run models.txt --out survey
      superweight survey run plan.jsonl --out survey --do analyze --max-memory 16GB --timeout 3600
      superweight survey run plan.jsonl --out survey --shard 3/8 --dry-run
    """
    from analyzer.survey.planning import part_of, read_list, units_of
    from analyzer.survey.store import Folder
    from analyzer.survey.units import PIN, Job, pin_unit
    from analyzer.survey.work.attempts import Terms, still_to_do
    from analyzer.survey.work.limits import Limits

    _check(ctx, do)
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address goes with --engine ray")
    folder = Folder(out)
    folder.make()
    folder.sweep()
    limits = Limits(max_memory, timeout)
    terms = Terms(limits, again, retry_failed, folder.now(), scan.use_cache, token)
    job = Job(do, scan, settings if do != "scan" else None)
    names = part_of(read_list(list_file), job, shard)
    pins = [pin_unit(name) for name in names if isinstance(name, str)]
    if not dry_run:
        folder.save_job(Job(PIN), pins)  # for `status` to know of them
    pin_all(out, pins, terms, quiet=quiet)
    _say_old_pins(folder, pins)
    units = units_of(folder, names, job)
    opened = [unit for unit in units if unit.do == do]
    wanted = [unit for unit in opened if max_bytes is None or unit.needs <= max_bytes]
    to_run = still_to_do(folder, wanted, terms)
    if do != "scan" and not (settings.early_stop or ray_address or quiet):
        _say_downloads(to_run)
    if dry_run:
        _show_plan(to_run, len(units) - len(to_run), as_json)
        return
    folder.save_job(job, wanted)
    ray, device = engine == "ray", settings.device
    tally = run_all(do, out, to_run, terms, do=do, device=device, ray=ray, ray_address=ray_address, quiet=quiet)
    others = {
        "not_opened": len(units) - len(opened),
        "before": len(wanted) - len(to_run),
        "left_out": len(opened) - len(wanted),
        "same": len(names) - len(units),
    }
    _show_end(tally, others, out, as_json)


def _check(ctx: click.Context, do: str) -> None:
    """Refuse options that are not of the job."""
    others = {"scan": OF_VERIFY, "verify": OF_SCAN, "analyze": (*OF_SCAN, "early_stop")}[do]
    wrong = [name for name in others if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if wrong:
        option = next(each.opts[0] for each in ctx.command.params if each.name == wrong[0])
        raise click.UsageError(f"{option} is not an option of `superweight {do}`: leave it out, or give another --do")


def _say_old_pins(folder: Folder, pins: Sequence[Unit]) -> None:
    """Say on stderr what could not be looked up anew, where it is known what it stood for before."""
    from analyzer.survey.store import RESULT

    for unit in pins:
        failure = folder.failure(unit) if folder.written(unit, RESULT) is not None else None
        if failure is not None:
            click.echo(f"warning: what {shown(unit.model)} stood for before is taken: {failure.line}", err=True)


def _say_downloads(units: Sequence[Unit]) -> None:
    """Say on stderr how much of the weights goes into the Hub's cache, out of which nothing takes it."""
    from analyzer.source.hub.cache import room

    if size := sum(unit.needs for unit in units if not Path(unit.name).is_absolute()):
        folder, free = room()
        click.echo(
            f"up to {byte_size(size)} of weights are downloaded into the Hub's cache, and stay there: {shown(folder)} "
            f"has room for {byte_size(free)}",
            err=True,
        )


def _show_plan(units: Sequence[Unit], others: int, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [{"model": u.model, "commit": u.commit, "bytes": u.needs} for u in units]
    total = sum(unit.needs for unit in units)
    if as_json:
        print_json({"units": rows, "bytes": total, "others": others})
        return
    click.echo(
        f"Would run {count_of(len(units), 'unit')}, {byte_size(total)}; {others:,} are done, failed or left out.\n"
    )
    for row in rows[:SHOWN_UNITS]:
        click.echo(f"{byte_size(row['bytes']):>8}  {shown(row['model'], 70)}  {(row['commit'] or '')[:12]}".rstrip())
    if rows[SHOWN_UNITS:]:
        click.echo(f"… and {len(rows) - SHOWN_UNITS:,} more (--json lists all)")


def _show_end(tally: Tally, others: dict[str, int], out: Path, as_json: bool) -> None:
    failed = dict(sorted(tally.failed.items()))
    if as_json:
        print_json({"out": str(out), "done": tally.done, "failed": failed, **others, "bytes": tally.bytes_done})
        return
    why = ", ".join(f"{count} {kind}" for kind, count in failed.items())
    parts = [f"{tally.done:,} done, {tally.failed.total():,} failed{f' ({why})' if why else ''}"]
    said = {
        "not_opened": "could not be opened",
        "before": "settled before",
        "left_out": "left out (--max-bytes)",
        "same": "more names that stand for the same",
    }
    parts += [f"{others[key]:,} {words}" for key, words in said.items() if others[key]]
    click.echo(f"{'; '.join(parts)}. See `superweight survey status {shown(out)}`.")
