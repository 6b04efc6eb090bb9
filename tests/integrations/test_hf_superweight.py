"""The extension of `hf`, in the folder where an installation puts it, called by the real `hf`."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checkpoints import random_downs, write_llama

from analyzer import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "integrations" / "hf-superweight"
JOBS = ROOT / "integrations" / "hf-jobs" / "survey.py"


def install(home, script):
    """Leave in a home what `hf extensions install me/hf-superweight` leaves there of an executable."""
    script.parent.mkdir(parents=True, exist_ok=True)
    manifest = {
        "owner": "me",
        "repo": "hf-superweight",
        "repo_id": "me/hf-superweight",
        "short_name": "superweight",
        "executable_path": str(script),
        "type": "binary",
        "installed_at": "2026-11-28T00:00:00+00:00",
        "description": json.loads((FOLDER / "manifest.json").read_text())["description"],
        "commit_sha": None,
    }
    (script.parent / "manifest.json").write_text(json.dumps(manifest))
    assert script.is_relative_to(home)


def run_hf(home, *arguments, **environment):
    command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *map(str, arguments)]
    environment = {**os.environ, "HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment)


def place(home):
    return home / ".local" / "share" / "hf" / "extensions" / "hf-superweight" / "hf-superweight"


@pytest.fixture(scope="module")
def hf(uv, tmp_path_factory):
    """Run the real `hf` where the extension is installed."""
    home = tmp_path_factory.mktemp("home")
    place(home).parent.mkdir(parents=True)
    install(home, uv.script(FOLDER / "hf-superweight", place(home)))
    return lambda *arguments: run_hf(home, *arguments, **uv.environment)


def test_hf_runs_it(hf, tmp_path):
    downs = random_downs()
    downs[1][2, 3] = 1.5
    write_llama(tmp_path / "tiny", downs)
    done = hf("superweight", "scan", tmp_path / "tiny", "--top", 1, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    (outlier,) = json.loads(done.stdout)["outliers"]
    assert (outlier["layer"], outlier["row"], outlier["col"], outlier["value"]) == (1, 2, 3, 1.5)


def test_it_is_called_hf_superweight(hf):
    done = hf("superweight", "survey", "run", "--help")
    assert done.stdout.startswith("Usage: hf superweight survey run [OPTIONS] LIST|PLAN")
    assert "\n    hf superweight survey run models.txt --out survey\n" in done.stdout
    assert not re.search(r"(?m)^ *superweight ", done.stdout)
    assert "Find, verify and catalog" in hf("--help").stdout


def test_what_goes_wrong_comes_through(hf):
    done = hf("superweight", "scan", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    done = hf("superweight", "scan")
    assert done.returncode == 2
    assert "Try 'hf superweight scan -h'" in done.stderr or "Try 'hf superweight scan --help'" in done.stderr


def test_without_uv_it_is_a_line(tmp_path):
    script = place(tmp_path)
    script.parent.mkdir(parents=True)
    script.write_bytes((FOLDER / "hf-superweight").read_bytes())
    script.chmod(0o755)
    install(tmp_path, script)
    done = run_hf(tmp_path, "superweight", "--help", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: hf superweight needs uv: see https://docs.astral.sh/uv\n"


@pytest.mark.parametrize("script", [FOLDER / "hf-superweight", JOBS], ids=lambda path: path.name)
def test_a_script_names_what_it_needs_by_an_address_at_this_version(script):
    block = re.search(r"(?ms)^# /// script$\n(.*?)^# ///$", script.read_text("utf-8"))[1]
    content = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = f"{project['name']} @ git+https://github.com/-owner-/superweight@v{__version__}"
    assert content["dependencies"] == [address]
    assert content["requires-python"] == project["requires-python"]
    assert os.access(script, os.X_OK)
