"""A Hub with tiny models, and a list of these and of local ones, for all tests of whole surveys."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

COUNT = 4


@dataclass
class Town:
    """Where surveys are run: each command a process of its own, on one Hub, with nothing kept between tests."""

    root: Path
    hub: object
    list_file: Path

    def start(self, *arguments, before=(), **environment):
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_CACHE": str(self.root / "hub-cache"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        }
        command = [*before, sys.executable, "-m", "analyzer", "survey", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=environment, **pipes)

    def run(self, *arguments, status=0, **environment):
        """Run a command to its end; returns what it says on stdout, or on stderr where it has another status."""
        return self.end(self.start(*arguments, **environment), status=status)

    def end(self, process, *, status=0):
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        return err if status else out

    def table(self, out):
        self.run("collect", out)
        return (out / "survey.parquet").read_bytes()


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    from checkpoints import random_downs, write_gpt2, write_llama
    from hub_server import HubServer

    root, hub, names = tmp_path_factory.mktemp("town"), HubServer(), []
    for number in range(COUNT):
        write = write_gpt2 if number % 3 == 0 else write_llama
        folder = root / f"model-{number}"
        write(folder, random_downs(layers=2, intermediate=20 + 8 * number, seed=number))
        names.append(f"owner/model-{number}" if number else str(folder))
        if number:
            hub.add(names[-1], folder)
    random.Random(0).shuffle(names)
    (root / "list.txt").write_text("".join(f"{name}  # a comment\n" for name in names))
    yield Town(root, hub, root / "list.txt")
    hub.stop()


@pytest.fixture(scope="module")
def whole(town):
    """The folder of a survey that nothing has disturbed."""
    out = town.root / "whole"
    town.run("run", town.list_file, "--out", out, "--top", 3, "--quiet")
    town.table(out)
    return out
