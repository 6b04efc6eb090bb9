"""Keeps the tests off the real Hub and out of the user's home; must run before anything imports the Hub's client."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from quick import slow_files, test_files

HOME = tempfile.mkdtemp(prefix="superweight-tests-")
for name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "HF_TOKEN_PATH",
    "HF_OIDC_RESOURCE",
):
    os.environ.pop(name, None)
os.environ |= {
    "HF_HOME": HOME,
    "HF_ENDPOINT": "http://127.0.0.1:1",  # closed: a test that forgets its own server reaches nothing
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # else the client asks for /api/agent-harnesses as well
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "SUPERWEIGHT_CACHE": f"{HOME}/superweight",
    "OMP_NUM_THREADS": "1",  # more threads, on matrices as small as these, only wait for each other
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}

# Two slow cores are no reason to fail; the same examples each time, so that a failure is a change of the code.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what needs torch or the network, or is slow")
    parser.addoption("--long", action="store_true", help="also run what takes half a minute and more each")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and collection_path in slow_files():
        return True
    return None


def pytest_collection_modifyitems(items, config):
    if not config.getoption("--long"):
        items[:] = [item for item in items if item.get_closest_marker("long") is None]
    if config.getoption("--quick"):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]
    items.sort(key=lambda item: item.get_closest_marker("early") is None)  # else one of two cores waits at the end


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # the two million objects of torch and transformers outlive all tests: looked at in vain each time


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--quick"):
        files = f"{len(slow_files())} of {len(test_files())} test files, which need torch or the network"
        terminalreporter.write_line(f"left out: {files}, and tests marked as slow")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of this test's own, with an empty cache; for a child process pass HF_ENDPOINT=hub.url."""
    from hub_server import HubServer
    from huggingface_hub import close_session, constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("analyzer.source.hub.patience.PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("SUPERWEIGHT_CACHE", str(tmp_path / "superweight-cache"))
    yield server
    close_session()  # its kept connections would outlive the server
    server.stop()


@pytest.fixture
def clock(hub, monkeypatch):
    """Takes the place of the time between tries: nobody waits, and `slept` is what was to be waited."""
    from analyzer.source.hub import patience

    slept = []
    clock = SimpleNamespace(slept=slept, sleep=slept.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(patience, "PAUSES", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
    return clock


@pytest.fixture
def superweight(hub, tmp_path):
    """Start the command line in a process of its own, on this test's Hub: returns the Popen, for `communicate`."""
    started = []

    def start(*arguments, **environment):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
            **environment,
        }
        command = [sys.executable, "-m", "analyzer", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def here(capsys, monkeypatch):
    """Run the command line in this process, where torch is imported already; returns what `subprocess.run` would."""
    from analyzer.__main__ import run

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["superweight", *map(str, arguments)])
        status = run()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, status, out, err)

    return run_here


@pytest.fixture
def folder(tmp_path):
    """A tiny checkpoint, new for each test."""
    from checkpoints import random_downs, write_llama

    write_llama(tmp_path / "tiny", random_downs())
    return tmp_path / "tiny"


@pytest.fixture
def sharded(hub, tmp_path):
    """A checkpoint in four shards, on the Hub as owner/tiny; no two of its down projections are side by side."""
    from checkpoints import random_downs, write_llama

    write_llama(tmp_path / "sharded", random_downs(layers=6), shards=4)
    hub.add("owner/tiny", tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture
def kept():
    from analyzer.scan.kept import ResultCache, cache_folder

    return ResultCache(cache_folder())
