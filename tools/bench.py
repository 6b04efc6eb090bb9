"""Measure the ratios that the design promises, all in one run on this machine.

Scanning is measured on a checkpoint of 2 GB that is made for it, in a temporary folder, with its pages in the cache;
verifying on the sample model and on a planted Llama of 4 GB. Absolute times are shown, but only the ratios mean
anything elsewhere.

    python tools/bench.py
    python tools/bench.py --planted small   # to try it: with a small Llama
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from bench_passes import HEADERS, Bench, Row, cost_rows, planted_rows
from planted_llama import SIZES
from sample_model import built_sample_model
from tabulate import tabulate

from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.projections.projection import down_projection_bytes
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

LAYERS, ROWS, COLS = 22, 4096, 11008  # of a Llama-2-7b: 2 GB of bfloat16 down projections
REPEATS = 5
PROMPT = "Apple Inc. is a worldwide tech company."
INTERVENTIONS = 16
ROUND_TRIP_S = 0.05
LINKS = ((6, 1.25e7), (22, 1.25e8), (22, 5e8))  # layers to read, bytes a second: 100 Mbit, 1 Gbit, 4 Gbit


def main() -> None:
    """Print one table: what was measured, the figures, the ratio, the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", choices=SIZES, default="4GB")
    planted = parser.parse_args().planted
    rows: list[Row] = []

    def add(*measured: Row) -> None:
        rows.extend(measured)
        for row in measured:
            print("  ".join(row), file=sys.stderr)  # now: what follows may take minutes

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bench-2GB"
        print("making a checkpoint of 2 GB", file=sys.stderr)
        make_checkpoint(folder)
        add(*bench_scan(folder))
        for layers, rate in LINKS:
            add(bench_link(folder, layers=layers, rate=rate))
        print("making another version of it", file=sys.stderr)
        make_checkpoint(Path(scratch) / "next-2GB", seed=1)
        add(bench_diff(folder, Path(scratch) / "next-2GB"))
    add(*bench_start_up())
    add(*bench_interventions())
    add(*cost_rows(Bench(built_sample_model())))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"planted-{planted}"
        print(f"making a planted model, {planted}", file=sys.stderr)
        add(*planted_rows(folder, planted))
        add(*bench_verify(folder))
    print(tabulate(rows, HEADERS, disable_numparse=True))


def make_checkpoint(folder: Path, *, seed: int = 0) -> None:
    """Write random bfloat16 down projections, and beside each as many bytes of something that must not be read."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": ROWS}))
    header: dict[str, object] = {}
    size = ROWS * COLS * 2
    for index, name in enumerate(f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(LAYERS)):
        header[name] = {"dtype": "BF16", "shape": [ROWS, COLS], "data_offsets": [index * size, (index + 1) * size]}
    rest = LAYERS * size
    header["model.embed_tokens.weight"] = {
        "dtype": "BF16",
        "shape": [ROWS, ROWS],
        "data_offsets": [rest, rest + 2 * ROWS**2],
    }
    encoded = json.dumps(header).encode()
    generator = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for elements in [ROWS * COLS] * LAYERS + [ROWS**2]:
            weights = generator.standard_normal(elements, dtype=np.float32) * np.float32(0.02)
            file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def bench_scan(folder: Path) -> list[Row]:
    """Return the rows about scanning: bytes, speed against top-k and against a copy, memory."""
    import torch
    from safetensors import safe_open

    checkpoint = Checkpoint(FolderSource(folder))
    projections = down_projections(checkpoint)
    needed = down_projection_bytes(projections) + checkpoint.bytes_read
    file = folder / "model.safetensors"

    def run_scan() -> None:
        scan(Checkpoint(FolderSource(folder)), projections)

    def run_read() -> None:  # out of the page cache into new memory, one thread
        with file.open("rb") as opened:
            opened.read(needed)

    def run_huge_pages() -> None:  # the same, into memory that NumPy asks huge pages for
        np.fromfile(file, np.uint8, count=needed)

    def run_topk() -> None:
        with safe_open(file, "pt") as tensors:
            for projection in projections:
                torch.topk(tensors.get_tensor(projection.name).abs().flatten(), 20)

    run_read()  # fills the page cache
    copied, into_huge_pages, scanned = fastest(run_read), fastest(run_huge_pages), fastest(run_scan)
    ranked = fastest(run_topk, repeats=1)
    read = scan(checkpoint, projections).bytes_read
    peak = peak_memory([sys.executable, "-m", "analyzer", "scan", str(folder), "--quiet", "--json"])
    return [
        ("bytes read / needed", f"{read / 1e9:.3f} / {needed / 1e9:.3f} GB", f"{read / needed:.4f}", "<= 1.01"),
        ("topk(abs) / scan", f"{ranked:.2f} / {scanned:.2f} s", f"{ranked / scanned:.1f}", ">= 15"),
        ("scan / read() of the same bytes", f"{scanned:.2f} / {copied:.2f} s", f"{scanned / copied:.2f}", "<= 2"),
        (
            "scan / the same into huge pages",
            f"{scanned:.2f} / {into_huge_pages:.2f} s",
            f"{scanned / into_huge_pages:.2f}",
            "-",
        ),
        ("scan, peak memory", f"{peak / 1e6:.0f} MB", "", "< 400 MB"),
    ]


def bench_link(folder: Path, *, layers: int, rate: float) -> Row:
    """Return the row about scanning over a link of `rate` bytes a second with 50 ms a round trip."""
    link = Path(__file__).with_name("link.py")
    command = [sys.executable, str(link), str(folder), str(rate), str(ROUND_TRIP_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        environment = os.environ | {"HF_ENDPOINT": server.stdout.readline().strip(), "NO_PROXY": "*"}
        environment.pop("HF_HUB_OFFLINE", None)
        scan = [sys.executable, "-m", "analyzer", "scan", "owner/bench", "--no-cache", "--quiet", "--json"]
        command = [*scan, "--layers", f"0-{layers - 1}"]
        with tempfile.TemporaryFile() as output:  # more than a pipe holds
            peak = sampled_peak(psutil.Popen(command, stdout=output, env=environment))
            output.seek(0)
            result = json.load(output)
        server.kill()
    reached = result["bytes_read"] / result["seconds"]
    what = f"scan over {rate * 8 / 1e9:.1f} Gbit/s, 50 ms round trips"
    measured = (
        f"{reached / 1e6:.1f} of {rate / 1e6:.1f} MB/s, {result['seconds']:.1f} s, peak memory {peak / 1e6:.0f} MB"
    )
    return what, measured, f"{reached / rate:.2f}", ">= 0.90"


def bench_diff(old: Path, new: Path) -> Row:
    """Return the row about comparing two versions of which every weight differs."""
    command = [sys.executable, "-m", "analyzer", "diff", str(old), str(new), "--quiet", "--json"]
    began = time.perf_counter()
    peak = peak_memory(command)
    compared = time.perf_counter() - began
    scanned = 0.0
    for folder in (old, new):
        began = time.perf_counter()
        peak_memory([sys.executable, "-m", "analyzer", "scan", str(folder), "--quiet", "--json"])
        scanned += time.perf_counter() - began
    measured = f"{compared:.2f} / {scanned:.2f} s, peak memory {peak / 1e6:.0f} MB"
    return "diff of two versions, all weights changed / scan of both", measured, f"{compared / scanned:.2f}", "< 400 MB"


def bench_start_up() -> list[Row]:
    """Return the rows about starting: help, and the imports of a scan."""
    rooms = "analyzer.cli.main, analyzer.analyze.scanning, analyzer.scan.report"
    imports = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    commands = {
        "superweight --help": [sys.executable, "-m", "analyzer", "--help"],
        "imports of a scan, without torch": [sys.executable, "-c", imports],
    }
    rows: list[Row] = []
    for what, command in commands.items():
        seconds = fastest(lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))  # type: ignore[misc]
        rows.append((what, f"{seconds:.2f} s", "", "< 0.5 s"))
    return rows


def bench_verify(folder: Path) -> list[Row]:
    """Return the rows about verifying a planted model: memory, time, and bytes with --early-stop."""
    text = folder / "text.txt"
    text.write_text("The miller had three sons, his mill, a donkey and a cat; the sons had to grind. " * 2)
    command = [sys.executable, "-m", "analyzer", "verify", str(folder), "--quiet", "--json", "--text", str(text)]
    began = time.perf_counter()
    with (folder / "result.json").open("w+b") as output:  # more than a pipe holds
        peak = sampled_peak(psutil.Popen(command, stdout=output))
    seconds, found = time.perf_counter() - began, json.loads((folder / "result.json").read_text())
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-c", WHOLE_MODEL, str(folder), PROMPT], stdout=subprocess.DEVNULL)
    whole_peak = sampled_peak(process)
    whole_seconds = time.perf_counter() - began
    began = time.perf_counter()
    early = json.loads(subprocess.run([*command, "--early-stop"], check=True, capture_output=True).stdout)
    early_seconds = time.perf_counter() - began
    weight = found["super_weights"][0]
    where = f"{found['verdict']} ({weight['layer']}, {weight['row']}, {weight['col']})"
    size, read = early["checkpoint_bytes"], early["bytes_read"]
    return [
        (
            f"verify {size / 1e9:.1f} GB, peak memory / from_pretrained with hooks",
            f"{peak / 1e9:.2f} / {whole_peak / 1e9:.2f} GB, {where}",
            f"{peak / whole_peak:.2f}",
            "< 2 GB",
        ),
        (
            "verify, all of it / from_pretrained with hooks, one pass",
            f"{seconds:.0f} / {whole_seconds:.0f} s",
            f"{seconds / whole_seconds:.1f}",
            "-",
        ),
        (
            "bytes read with --early-stop / checkpoint",
            f"{read / 1e9:.2f} / {size / 1e9:.2f} GB in {early_seconds:.0f} s, {early['verdict']}",
            f"{read / size:.2f}",
            "-",
        ),
    ]


WHOLE_MODEL = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
ids = transformers.AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt").input_ids
seen = []
for layer in model.model.layers:
    layer.mlp.down_proj.register_forward_hook(lambda m, a, o: seen.append((a[0].abs().max(), o.abs().max())))
with torch.inference_mode():
    model(ids)
"""


def bench_interventions() -> list[Row]:
    """Return the row about zeroing many weights in one pass over the sample model, its blocks dropped after use."""
    from analyzer.forward.edits import zeroing
    from analyzer.forward.runner import Runner
    from analyzer.model.tokens import Tokens

    folder = built_sample_model()
    checkpoint = Checkpoint(FolderSource(folder))
    runner = Runner(checkpoint, down_projections(checkpoint), folder, keep_bytes=0)
    ids = Tokens(runner.name, folder, vocabulary=runner.vocabulary, max_tokens=runner.max_tokens).ids(PROMPT)
    zeroed = [zeroing([Coordinate(layer, None, 507, 1229)]) for layer in range(INTERVENTIONS)]

    def at_once() -> np.ndarray:
        return np.stack(list(runner.streams([ids] * len(zeroed), zeroed)))

    def one_by_one() -> np.ndarray:
        return np.concatenate([list(runner.streams([ids], [one])) for one in zeroed])

    one_pass, passes = fastest(at_once), fastest(one_by_one, repeats=2)
    together, apart = at_once(), one_by_one()
    difference = float(np.abs(together - apart).max()) / float(np.abs(apart).max())
    measured = f"{passes:.2f} / {one_pass:.2f} s, largest difference {difference:.0e} of the largest activation"
    return [
        (f"{INTERVENTIONS} passes / one pass with {INTERVENTIONS} rows", measured, f"{passes / one_pass:.1f}", "> 1")
    ]


def fastest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the shortest of several runs, in seconds: noise only ever adds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def peak_memory(command: list[str]) -> int:
    """Return the peak resident size of a command, in bytes, by sampling it."""
    return sampled_peak(psutil.Popen(command, stdout=subprocess.DEVNULL))


def sampled_peak(process: psutil.Popen) -> int:
    """Wait for a process, and return its peak resident size in bytes."""
    peak = 0
    while process.poll() is None:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            break
        peak = max(peak, memory.rss)
        time.sleep(0.002)
    return peak


if __name__ == "__main__":
    main()
