"""The package as it is installed: it holds every file of every room, and runs without the sources."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from built_wheel import ROOT, build_wheel, pip
from checkpoints import random_downs, write_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run `superweight` as it is installed, in a folder that holds nothing of the sources."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", wheel, "--target", folder / "site")
    (folder / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}

    def run(*command):
        process = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True, text=True, cwd=folder / "elsewhere", env=environment,
        )  # fmt: skip
        assert (process.returncode, process.stderr) == (0, "")
        return process.stdout

    assert Path(run("-c", "import analyzer; print(analyzer.__file__)").strip()).is_relative_to(folder / "site")
    return run


def test_it_holds_every_file_of_every_room(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "analyzer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= {f"analyzer/record/{path.name}" for path in (ROOT / "catalog").glob("*.json")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files


def test_it_scans(installed, tmp_path):
    downs = random_downs()
    downs[1][2, 3] = 1.5
    write_llama(tmp_path / "tiny", downs)
    assert "Largest weight: layer 1, row 2, col 3 = +1.5" in installed("-m", "analyzer", "scan", tmp_path / "tiny")


def test_it_knows_the_record(installed):
    shown = installed("-m", "analyzer", "catalog", "show", "mistralai/Mistral-7B-v0.1")
    assert "Reported by others, not verified here" in shown
    assert "2070  7310" in shown
