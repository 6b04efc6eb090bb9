"""Surveys on a real Ray of two CPUs: the table is that of this machine alone, also where a worker is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from checkpoints import random_downs, write_llama
from commands import fails, superweight

from analyzer.base.errors import SurveyError
from analyzer.scan.records import ScanSettings
from analyzer.survey.planning import pinned
from analyzer.survey.running import run_units
from analyzer.survey.store import CLAIM, Folder
from analyzer.survey.units import DONE, FAILED, STOPPED, Job, Outcome, Unit, pin_unit
from analyzer.survey.work import cluster
from analyzer.survey.work.attempts import Terms
from analyzer.survey.work.cluster import RayEngine, ask_for, memory_for, ray_engine
from analyzer.survey.work.job import OK, do_unit
from analyzer.survey.work.limits import Limits

ROOT = Path(__file__).parents[3]
JOB = Job("scan", ScanSettings(top=3))


@pytest.fixture(scope="module")
def ray(town, tmp_path_factory):
    """A Ray of two CPUs, started as the engine starts its own; no other is looked for."""
    module = pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        patch.setenv("HF_ENDPOINT", town.hub.url)
        patch.setenv("HF_HUB_CACHE", str(town.root / "hub-cache"))
        patch.setattr(cluster, "cores", lambda: 2)
        with ray_engine(tmp_path_factory.mktemp("out"), Terms(), do="scan", device="auto", address=None) as engine:
            assert (engine.slots, engine.most_bytes) == (2, 32_000_000_000)
            yield module


@pytest.fixture
def survey(tmp_path):
    folder = Folder(tmp_path / "survey")
    folder.save_job(JOB, [])
    return folder


@pytest.fixture
def held(town):
    """Whether the Hub keeps everybody waiting who reads a file, from when it is set to [True] on."""
    held = [False]

    def hold(request, reply):
        while held[0] and request.origin == "cdn":
            time.sleep(0.05)
        return reply

    town.hub.tamper = hold
    yield held
    held[0] = False
    town.hub.tamper = lambda request, reply: reply


def unit_of(survey, folder):
    """Return the unit of a local model."""
    assert do_unit(survey, pin_unit(str(folder))) == OK
    return pinned(survey, str(folder)).unit(JOB)


def unit_on(hub, number):
    """Return the unit of one of the models on the Hub."""
    model = f"owner/model-{number}"
    commit = hub.repositories[model].resolve("main")
    return Unit("scan", JOB.key, f"{model}@{commit}", model, None, commit, needs=100)


def engine_of(ray, survey, limits=None):
    return RayEngine(ray, survey.root, Terms(limits or Limits()), do="scan", device="auto")


def until(value):
    for _ in range(600):
        if found := value():
            return found
        time.sleep(0.05)
    raise AssertionError("it does not come")


def worker_of(survey, unit):
    """Return the number of the process that has claimed a unit."""
    return until(lambda: (path := survey.path(unit, CLAIM)).exists() and json.loads(path.read_text())["pid"])


@pytest.mark.slow
def test_a_survey_with_a_worker_killed_is_the_same(town, whole, tmp_path, ray, held):
    """Under `uv run` where there is one: the workers are then processes of the same Python."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    plan = tmp_path / "plan.jsonl"
    plan.write_text(town.run("plan", town.list_file, "--quiet"))
    held[0] = True
    command = ["run", plan, "--out", tmp_path, "--top", 3, "--quiet", "--json", "--engine", "ray"]
    before = [uv, "run", "--no-project", "--offline"] if uv else []
    process = town.start(*command, before=before, PYTHONPATH=os.environ["PYTHONPATH"])
    claim = until(lambda: list(tmp_path.glob(f"scan/*/*{CLAIM}")))[0]
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
    held[0] = False
    said = json.loads(town.end(process))
    assert (said["done"], said["failed"]) == (4, {})
    assert town.table(tmp_path) == (whole / "survey.parquet").read_bytes()
    assert list(tmp_path.rglob(f"*{CLAIM}")) == []


CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
input()
cluster.remove_node(other, allow_graceful=False)
input()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_survey_with_a_machine_lost_is_the_same(town, whole, tmp_path, ray, held):
    plan = tmp_path / "plan.jsonl"
    plan.write_text(town.run("plan", town.list_file, "--quiet"))
    held[0] = True
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as machines:
        command = ["run", plan, "--out", tmp_path, "--top", 3, "--quiet", "--json", "--engine", "ray", "--ray-address"]
        process = town.start(*command, machines.stdout.readline().strip(), PYTHONPATH=os.environ["PYTHONPATH"])
        until(lambda: len(list(tmp_path.glob(f"scan/*/*{CLAIM}"))) == 2)
        machines.stdin.write("\n")
        machines.stdin.flush()
        time.sleep(1)
        held[0] = False
        said = json.loads(town.end(process))
        machines.communicate("\n")
    assert (said["done"], said["failed"]) == (4, {})
    assert town.table(tmp_path) == (whole / "survey.parquet").read_bytes()


def test_its_store_is_not_in_shared_memory(ray):
    raylets = [each for each in psutil.Process().children(recursive=True) if each.name() == "raylet"]
    (raylet,) = raylets
    assert any("superweight-ray-" in argument for argument in raylet.cmdline())


def test_a_unit_whose_worker_is_killed_is_done_again(ray, survey, town, held):
    unit, held[0] = unit_on(town.hub, 1), True
    engine = engine_of(ray, survey)
    engine.start(unit)
    first = worker_of(survey, unit)
    os.kill(first, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
    assert until(lambda: (pid := worker_of(survey, unit)) != first and pid)
    held[0] = False
    assert until(lambda: engine.ended(0.5)) == Outcome(unit.key, DONE)
    assert len(survey.result(unit)["result"]["outliers"]) == 3


def test_what_is_given_up_is_stopped_and_leaves_no_claim(ray, survey, town, held):
    unit, held[0] = unit_on(town.hub, 1), True
    engine = engine_of(ray, survey)
    engine.start(unit)
    worker_of(survey, unit)
    engine.stop()
    assert until(lambda: engine.ended(0.5)) == Outcome(unit.key, STOPPED)
    assert not survey.path(unit, CLAIM).exists()
    assert survey.result(unit) is survey.failure(unit) is None


def test_what_no_machine_can_hold_is_refused_at_once(ray, survey, folder):
    unit = unit_of(survey, folder)
    tally = run_units([unit], engine_of(ray, survey, Limits(memory=9 * 10**14)))
    assert dict(tally.failed) == {"memory": 1}
    assert survey.failure(unit).line.startswith("no machine of the Ray cluster has the 900 TB that it is given")


def test_a_failure_is_the_units_own_and_not_tried_again(ray, survey, folder):
    unit = unit_of(survey, folder)
    write_llama(folder, random_downs(seed=1))
    engine = engine_of(ray, survey)
    engine.start(unit)
    outcome = until(lambda: engine.ended(0.5))
    assert (outcome.state, outcome.failure.kind, outcome.failure.attempts) == (FAILED, "gone", 1)


def test_a_machine_that_is_not_made_for_it_ends_the_survey(ray, survey, folder, tmp_path, monkeypatch):
    unit = unit_of(survey, folder)
    monkeypatch.setattr(cluster, "__version__", "0.0.9")
    with pytest.raises(SurveyError, match=r"has superweight \S+, not 0\.0\.9: install the same"):
        run_units([unit], engine_of(ray, survey))
    monkeypatch.undo()
    with pytest.raises(SurveyError, match="give --out a folder that all machines share"):
        run_units([unit], engine_of(ray, Folder(tmp_path / "elsewhere")))


MACHINES = [{"cpu": 4, "memory": 1}, {"cpu": 8, "gpu": 2, "memory": 1}]


@pytest.mark.parametrize(
    ("do", "device", "machines", "ask", "slots"),
    [
        ("scan", "auto", MACHINES, {"cpu": 1, "gpu": 0}, 12),
        ("verify", "auto", MACHINES, {"cpu": 1, "gpu": 1}, 2),
        ("verify", "cpu", MACHINES, {"cpu": 8, "gpu": 0}, 1),
        ("analyze", "auto", MACHINES[:1] * 3, {"cpu": 4, "gpu": 0}, 3),
    ],
)
def test_what_a_unit_asks_for(do, device, machines, ask, slots):
    assert ask_for(do, device, machines) == (ask, slots)


@pytest.mark.parametrize(
    ("do", "device", "machines", "line"),
    [
        ("verify", "cuda", MACHINES[:1], "no machine of the Ray cluster has a GPU to give"),
        ("scan", "auto", [], "no machine of the Ray cluster has a CPU to give"),
        ("verify", "cuda:1", MACHINES, "give --device cuda in place of cuda:1"),
    ],
)
def test_what_could_never_be_placed_is_refused(do, device, machines, line):
    with pytest.raises(SurveyError, match=line):
        ask_for(do, device, machines)


def test_memory_that_is_asked_for():
    unit = Unit("verify", "job", "owner/name", "owner/name", needs=14_000_000_000)
    assert memory_for(unit) == 2_700_000_000
    assert memory_for(replace(unit, do="scan")) == 500_000_000


def test_without_ray_it_is_a_line(tmp_path, folder):
    (tmp_path / "site" / "ray.py").parent.mkdir()
    (tmp_path / "site" / "ray.py").write_text("raise ImportError\n")
    (tmp_path / "list.txt").write_text(f"{folder}\n")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    command = ["survey", "run", tmp_path / "list.txt", "--out", tmp_path / "out", "--quiet"]
    fails(
        superweight(*command, "--engine", "ray", PYTHONPATH=path),
        "--engine ray needs ray: `pip install ray` beside superweight",
    )
    done = superweight(*command, "--ray-address", "auto", PYTHONPATH=path)
    assert done.returncode == 2
    assert "--ray-address goes with --engine ray" in done.stderr


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_a_line(ray, tmp_path, folder):
    (tmp_path / "list.txt").write_text(f"{folder}\n")
    command = ["run", tmp_path / "list.txt", "--out", tmp_path / "out", "--quiet", "--engine", "ray"]
    path = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    fails(
        superweight("survey", *command, "--ray-address", "127.0.0.1:1", **path),
        "cannot reach the Ray cluster at 127.0.0.1:1: ",
    )
