"""The process of one unit: what it writes is what the job itself returns, and each way to fail has its class."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest
from checkpoints import random_downs, write_llama
from gguf_files import write_llama_gguf
from safetensors.numpy import load_file, save_file

from analyzer.analyze.scanning import scan_model
from analyzer.base.errors import AnalyzerError, ForwardError, NetworkError
from analyzer.base.records import plain
from analyzer.scan.records import ScanSettings
from analyzer.source.opening import open_model
from analyzer.survey.planning import pinned
from analyzer.survey.store import Folder
from analyzer.survey.units import Job, pin_unit
from analyzer.survey.work.job import HAS_FAILED, NO_ROOM, OK, do_unit, failure_of

JOB = Job("scan", ScanSettings(top=4))


@pytest.fixture
def survey(tmp_path):
    folder = Folder(tmp_path / "survey")
    folder.save_job(JOB, [])
    return folder


def ends(pid):
    """Tell whether a process ends within some seconds."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def pin_of(survey, name):
    assert do_unit(survey, pin_unit(str(name))) == OK
    return pinned(survey, str(name))


def test_a_pin_of_a_folder(survey, folder):
    pin = pin_of(survey, folder)
    assert (pin.name, pin.model, pin.commit, pin.model_type) == (str(folder), "tiny", None, "llama")
    assert pin.scan_bytes == 3 * 8 * 20 * 2
    assert pin.weight_bytes == (folder / "model.safetensors").stat().st_size
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    again = pin_of(survey, folder)
    assert again.state != pin.state
    assert do_unit(survey, pin.unit(JOB)) == HAS_FAILED
    assert survey.failure(pin.unit(JOB)).kind == "gone"
    assert "has changed since it was planned" in survey.failure(pin.unit(JOB)).line
    assert do_unit(survey, again.unit(JOB)) == OK


def test_a_pin_of_the_hub_stays_when_the_branch_goes_on(survey, hub, folder):
    commit = hub.add("owner/name", folder)
    pin = pin_of(survey, "owner/name@main")
    assert (pin.name, pin.model, pin.revision, pin.commit) == (f"owner/name@{commit}", "owner/name", "main", commit)
    unit = pin.unit(JOB)
    expected = plain(scan_model(open_model(folder, model_id="owner/name"), JOB.scan))
    write_llama(folder, random_downs(seed=1))
    assert hub.add("owner/name", folder) != commit
    assert do_unit(survey, unit) == OK
    result = survey.result(unit)["result"]
    assert (result["commit"], result["revision"]) == (commit, "main")
    assert [result[key] for key in ("tensors", "outliers")] == json.loads(
        json.dumps([expected[key] for key in ("tensors", "outliers")])
    )


def test_a_file_of_a_repository_and_a_folder_of_the_cache_keep_their_place(survey, hub, folder, tmp_path):
    (tmp_path / "gguf").mkdir()
    write_llama_gguf(tmp_path / "gguf" / "a.gguf", "Q8_0")
    commit = hub.add("owner/files", tmp_path / "gguf")
    for name in ("owner/files", "owner/files@main:a.gguf"):
        pin = pin_of(survey, name)
        assert (pin.name, pin.model) == (f"owner/files@{commit}:a.gguf", "owner/files:a.gguf")
        assert do_unit(survey, pin.unit(JOB)) == OK
    snapshot = tmp_path / "models--owner--kept" / "snapshots" / ("c" * 40)
    shutil.copytree(folder, snapshot)
    pin = pin_of(survey, tmp_path / "models--owner--kept")
    assert (pin.name, pin.model, pin.commit) == (str(tmp_path / "models--owner--kept"), "owner/kept", "c" * 40)
    assert do_unit(survey, pin.unit(JOB)) == OK


def test_what_cannot_be_told_from_headers_is_left_to_the_job(survey, folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({f"x.{n}.odd": t for n, t in enumerate(tensors.values())}, folder / "model.safetensors")
    pin = pin_of(survey, folder)
    assert (pin.scan_bytes, pin.needs(JOB)) == (None, pin.weight_bytes)
    assert do_unit(survey, pin.unit(JOB)) == HAS_FAILED
    assert survey.failure(pin.unit(JOB)).kind == "unsupported"


def test_each_way_to_fail_has_its_class(survey, hub, folder, tmp_path):
    hub.add("owner/gated", folder, token="secret", gated=True)
    hub.add("owner/away", folder)
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text("{}")
    (pickles / "pytorch_model.bin").write_bytes(b"not opened")
    claim = tmp_path / "claim"
    write_llama(claim, random_downs())
    (claim / "model.safetensors").write_bytes((10_000_000_000).to_bytes(8, "little") + b"{}")
    answer = hub.tamper
    hub.tamper = lambda request, reply: (
        replace(reply, status=503) if "owner/away" in request.path else answer(request, reply)
    )
    expected = {
        "owner/nothing": ("gone", "no such model on the Hub"),
        "owner/gated": ("gated", "is gated: accept its terms"),
        "owner/away": ("network", "answered HTTP 503"),
        str(tmp_path / "nowhere"): ("gone", "there is no folder or file"),
        str(pickles): ("unsupported", "only as pickle files"),
        str(claim): ("unsupported", "10000000000"),
    }
    for name, (kind, words) in expected.items():
        assert do_unit(survey, pin_unit(name)) == HAS_FAILED
        failure = survey.failure(pin_unit(name))
        assert (failure.kind, words in failure.line.replace(",", ""), failure.attempts) == (kind, True, 1), failure


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (ForwardError("torch: out of memory"), "memory"),
        (ForwardError("it does not run"), "unsupported"),
        (NetworkError("it is away"), "network"),
        (AnalyzerError("anything"), "unsupported"),
        (ZeroDivisionError("oh"), "bug"),
    ],
)
def test_classes_of_errors(error, kind):
    assert failure_of(error)[0] == kind


def test_a_full_disk_is_nobodys_failure(survey, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    unit = pin_of(survey, folder).unit(JOB)
    monkeypatch.setattr("analyzer.survey.store.write_whole", full)
    assert do_unit(survey, unit) == NO_ROOM
    assert survey.result(unit) is survey.failure(unit) is None


def test_it_ends_with_who_started_it(survey, hub, folder):
    """Who is killed cannot end what it started: that notices by itself."""
    hub.add("owner/name", folder)
    hub.tamper = lambda request, reply: replace(reply, stall=True, body=b"", cut=0)
    message = json.dumps({"unit": asdict(pin_unit("owner/name")), "out": str(survey.root), "use_cache": True})
    starter = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'analyzer.survey.work.job']\n"
        "p = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)\n"
        f"p.stdin.write({message + chr(10)!r}); p.stdin.flush(); print(p.pid, flush=True); p.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert psutil.Process(pid).is_running()
        process.kill()
    assert ends(pid)


def test_what_it_has_begun_ends_with_it():
    script = (
        "import subprocess, sys\n"
        "from analyzer.survey.work.job import _end_with_parent\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(p.pid, flush=True); _end_with_parent()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    pid = int(done.stdout)
    assert done.returncode == -9
    assert ends(pid)
