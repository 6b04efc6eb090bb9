"""Measure what a whole verification costs, against one plain pass of the same model over the same text.

    python tools/bench_passes.py                             # the sample model
    python tools/bench_passes.py --planted small             # a planted Llama made in a temporary folder, or 4GB
    python tools/bench_passes.py --model DIR --device cuda   # any other; on a GPU a pass is run in three ways

Each is run in a process of its own, so that its memory is its own. Floating-point operations are counted by torch,
which no other job on the machine changes; seconds are of this machine. Before weights were looked at over growing
portions of the text, a verification of the sample model cost 33 passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planted_llama import SIZES, write_planted
from sample_model import built_sample_model
from tabulate import tabulate

Row = tuple[str, str, str, str]
HEADERS = ["what", "measured", "ratio", "target"]
MOST_PASSES = 6  # beside one for each critical weight
PLANTED_TEXT = 1900  # of the evaluation text's bytes, each a token
WAYS = {"plain": "resident", "staged": "through slabs", "direct": "tensor by tensor"}  # of running a plain pass


@dataclass(frozen=True)
class Bench:
    """What is measured: a model, on a device, with the evaluation text or the beginning of it."""

    model: Path
    device: str = "cpu"
    text_bytes: int = 1 << 30

    def run(self, what: str) -> dict[str, Any]:
        """Return what a run of this kind cost, in a process of its own. Ends this one where it fails."""
        options = ["--model", str(self.model), "--device", self.device, "--text-bytes", str(self.text_bytes)]
        command = [sys.executable, __file__, *options, "--run", what]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"error: {what} of {self.model.name} failed: see above")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    """Print the table for the models that the command line names, or do one of its runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path)
    which.add_argument("--planted", choices=SIZES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--text-bytes", type=int, default=1 << 30)
    parser.add_argument("--run", choices=["whole", *WAYS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        print(json.dumps(run(given.run, Bench(given.model, given.device, given.text_bytes))))
        return
    if given.planted is None:
        rows = cost_rows(Bench(given.model or built_sample_model(), given.device, given.text_bytes))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rows = planted_rows(Path(scratch) / f"planted-{given.planted}", given.planted, given.device)
    print(tabulate(rows, HEADERS, disable_numparse=True))


def planted_rows(folder: Path, size: str, device: str = "cpu") -> list[Row]:
    """Return the rows about a planted Llama of this size, which is made unless it is there."""
    if not folder.exists():
        write_planted(folder, SIZES[size])
    return cost_rows(Bench(folder, device, PLANTED_TEXT))


def cost_rows(bench: Bench) -> list[Row]:
    """Return the rows about verifying a model: operations, seconds, memory, and passes over the weights."""
    one, whole = bench.run("plain"), bench.run("whole")
    name, critical, cost = bench.model.name, whole["critical"], whole["cost"]
    most = f"<= {MOST_PASSES + critical}"

    def ratio(key: str, unit: str, divisor: float, target: str) -> Row:
        measured = f"{whole[key] / divisor:.4g} / {one[key] / divisor:.4g} {unit}"
        return f"{name}: verify / one pass, {key}", measured, f"{whole[key] / one[key]:.1f}", target

    rows = [
        ratio("operations", "Tflop", 1e12, most),
        ratio("seconds", "s", 1, most),
        ratio("CPU seconds", "s", 1, "-"),
        ratio("peak memory", "MB", 1e6, "-"),
        (
            f"{name}: verify, passes over its blocks",
            f"{cost['passes']}; {cost['block_loads']} loads of blocks, {cost['bytes_loaded'] / 1e9:.2f} GB; "
            f"{cost['seconds_waiting']:.1f} s waiting, {cost['seconds_computing']:.1f} s computing",
            "",
            "-",
        ),
        (f"{name}: verdict", f"{whole['verdict']}, {critical} critical", "", "-"),
    ]
    if bench.device != "cpu":
        rows.append(ratio("device memory", "MB", 1e6, "-"))
        rows += [_way_row(bench, way, one if way == "plain" else bench.run(way)) for way in WAYS]
    return rows


def _way_row(bench: Bench, way: str, found: dict[str, Any]) -> Row:
    cost = found["cost"]
    measured = (
        f"{found['seconds']:.2f} s, {cost['seconds_waiting']:.2f} s waiting, {cost['bytes_loaded'] / 1e9:.2f} GB loaded"
    )
    return f"{bench.model.name}: one pass, blocks {WAYS[way]}", measured, "", "-"


def run(what: str, bench: Bench) -> dict[str, Any]:
    """Do one run in this process, and return what it cost; of several passes the last, and what it found."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from analyzer.analyze.running import open_runnable
    from analyzer.analyze.verifying import verify_model
    from analyzer.base.records import plain
    from analyzer.forward.checking import FAST_ATTENTION
    from analyzer.forward.edits import UNTOUCHED
    from analyzer.forward.losses.plain import token_losses
    from analyzer.model import blocks
    from analyzer.model.stock import attend_by
    from analyzer.source.folder import FolderSource
    from analyzer.verify.settings import VerifySettings, evaluation_text

    source, text = FolderSource(bench.model), evaluation_text()[: bench.text_bytes]
    on_gpu = bench.device.startswith("cuda")

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    left_out_by_torch = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}

    def measured(work: Any) -> tuple[Any, dict[str, Any]]:
        cpu, began = time.process_time(), time.perf_counter()
        with FlopCounterMode(display=False, custom_mapping=left_out_by_torch) as counter:
            result = work()
        if on_gpu:
            torch.cuda.synchronize()
        return result, {
            "seconds": time.perf_counter() - began,
            "CPU seconds": time.process_time() - cpu,
            "operations": counter.get_total_flops(),
            "peak memory": peak_memory(),
            "device memory": torch.cuda.max_memory_allocated() if on_gpu else 0,
        }

    if what == "whole":
        result, figures = measured(lambda: verify_model(source, VerifySettings(text=text, device=bench.device)))
        critical = sum(weight.effect == "critical" for weight in result.super_weights)
        return {**figures, "cost": plain(result.cost), "critical": critical, "verdict": result.verdict}
    if what == "direct":
        blocks.staging_to = lambda *_: None  # type: ignore[attr-defined]
    runner, tokens = open_runnable(source).build(device=bench.device, keep_bytes=None if what == "plain" else 0)
    pairs = [(window, UNTOUCHED) for window in tokens.windows(text)]
    attend_by(runner.blocks.model, FAST_ATTENTION)  # as a verification does
    if on_gpu:
        token_losses(runner, pairs)  # what CUDA does first, and loading of what stays
    runner.blocks.cost = type(runner.blocks.cost)()
    _, figures = measured(lambda: token_losses(runner, pairs))
    return {**figures, "cost": plain(runner.blocks.cost)}


def peak_memory() -> int:
    """Return the peak resident size of this process alone: what forked it counts with getrusage, on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
