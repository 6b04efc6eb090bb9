"""A Hub with tiny models, and a list of these and of local ones, for all tests of whole surveys."""

import io
import os
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

COUNT = 4


@dataclass
class Town:
    """Where surveys are run, on one Hub, with nothing kept between tests: in this process, or in ones of their own."""

    root: Path
    hub: object
    list_file: Path

    def start(self, *arguments, before=(), program=("-m", "analyzer"), **environment):
        """Start a command in a process of its own, for what is killed, interrupted, or runs beside another."""
        command = [*before, sys.executable, *program, "survey", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.root, env={**os.environ, **environment}, **pipes)

    def call(self, *arguments):
        """Run a command to its end in this process; its units still have processes of their own."""
        from analyzer.__main__ import run

        argv, out, err = ["superweight", "survey", *map(str, arguments)], io.StringIO(), io.StringIO()
        with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
            status = run()
        return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())

    def run(self, *arguments, status=0):
        """Run a command to its end; returns what it says on stdout, or on stderr where it has another status."""
        done = self.call(*arguments)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

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
    from huggingface_hub import close_session, constants

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
    cache = str(root / "hub-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", cache)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HUB_CACHE", cache)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield Town(root, hub, root / "list.txt")
    close_session()  # its kept connections would outlive the server
    hub.stop()


@pytest.fixture(scope="module")
def whole(town):
    """The folder of a survey that nothing has disturbed."""
    out = town.root / "whole"
    town.run("run", town.list_file, "--out", out, "--top", 3, "--quiet")
    town.table(out)
    return out
