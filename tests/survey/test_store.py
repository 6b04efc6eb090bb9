"""The folder of a survey: results, failures and claims, of processes that live, hang, and are dead."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from analyzer.base.errors import SurveyError
from analyzer.scan.records import ScanSettings
from analyzer.survey.store import CLAIM, FAILURE, RESULT, STALE_S, Folder
from analyzer.survey.units import Failure, Job, Unit
from analyzer.verify.settings import VerifySettings

UNIT = Unit("scan", "a job", "owner/name@abc", "owner/name", commit="abc", needs=5)
CLAIMED = (
    "import sys; from pathlib import Path; from analyzer.survey.store import *; from analyzer.survey.units import *\n"
)
CLAIMED += "print(Folder(Path(sys.argv[1])).claim(Unit(*sys.argv[2:6], commit='abc')) is not None, flush=True)\n"


@pytest.fixture
def survey(tmp_path):
    return Folder(tmp_path)


def claiming(root, *, then=""):
    """Start a process that claims the unit, tells whether it has it, and then does something."""
    command = [sys.executable, "-c", CLAIMED + then, root, UNIT.do, UNIT.job, UNIT.name, UNIT.model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip() == "True"


def test_a_result_takes_the_place_of_a_failure(survey):
    assert survey.result(UNIT) is survey.failure(UNIT) is survey.written(UNIT, RESULT) is None
    assert survey.save_failure(UNIT, "network", "it is away") == Failure("network", "it is away", 1)
    assert survey.save_failure(UNIT, "timeout", "it hangs") == survey.failure(UNIT) == Failure("timeout", "it hangs", 2)
    assert (survey.keys("scan", FAILURE), survey.keys("scan", RESULT)) == ({UNIT.key}, set())
    survey.save_result(UNIT, {"result": {"a": 1}})
    assert survey.result(UNIT)["result"] == {"a": 1}
    assert (survey.keys("scan", FAILURE), survey.keys("scan", RESULT)) == (set(), {UNIT.key})


def test_a_unit_is_one_by_its_model_commit_job_and_state():
    keys = {
        UNIT.key,
        Unit("verify", "a job", "owner/name@abc", "owner/name", commit="abc").key,
        Unit("scan", "another", "owner/name@abc", "owner/name", commit="abc").key,
        Unit("scan", "a job", "owner/other", "owner/name", commit="abc").key,
        Unit("scan", "a job", "owner/name@abc", "owner/name", commit="abd").key,
        Unit("scan", "a job", "owner/name@abc", "owner/name", commit="abc", state="x").key,
    }
    assert len(keys) == 6
    assert Unit("scan", "a job", "owner/name@abc", "a name", "main", "abc", needs=9).key == UNIT.key


@pytest.mark.parametrize(
    "job",
    [
        Job("pin"),
        Job("scan", ScanSettings("gain", 3, (range(2), range(5, 9)), "x.*")),
        Job("analyze", verify=VerifySettings("A prompt", "A text", ("one", "two"), device="cpu", dtype="float16")),
    ],
)
def test_a_job_is_kept(survey, job):
    survey.save_job(job, [UNIT])
    kept = survey.job(job.key)
    assert (kept.do, kept.key, kept.scan) == (job.do, job.key, job.scan)
    assert kept.verify == job.verify
    assert survey.units() == [UNIT]


def test_what_makes_a_job_one():
    jobs = [Job("scan"), Job("verify"), Job("scan", version="2"), Job("scan", ScanSettings(top=5))]
    jobs += [Job("verify", verify=VerifySettings(text=text)) for text in ("A text", "Another")]
    assert len({job.key for job in jobs}) == 6
    assert Job("scan", ScanSettings(use_cache=False)).key == Job("scan").key


def test_one_of_two_processes_has_a_unit(survey):
    process, has_it = claiming(survey.root, then="sys.stdin.read()")
    assert has_it
    assert survey.claim(UNIT) is None
    assert [key for key, _ in survey.claims()] == [UNIT.key]
    process.kill()
    process.wait()
    assert list(survey.claims()) == []
    claim = survey.claim(UNIT)  # at once: who has it is dead
    assert not claiming(survey.root)[1]
    claim.release()
    assert claiming(survey.root)[1]


def test_a_claim_outlives_a_clock_that_is_set(survey, monkeypatch):
    """What tells when a process began adds its seconds to the machine's start, which is told by the clock."""
    process, has_it = claiming(survey.root, then="sys.stdin.read()")
    began = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: began + 3600)
    assert psutil.boot_time() == began + 3600
    survey.sweep()
    assert has_it
    assert survey.claim(UNIT) is None
    process.kill()
    process.wait()
    assert survey.claim(UNIT) is not None


def test_a_claim_of_another_machine_is_taken_over_when_it_is_old(survey):
    survey.claim(UNIT)
    path = survey.path(UNIT, CLAIM)
    path.write_text(json.dumps({"owner": "other", "host": "elsewhere", "pid": 1, "began": 0}))
    assert survey.claim(UNIT) is None
    os.utime(path, (time.time() - STALE_S - 1,) * 2)
    claim = survey.claim(UNIT)
    assert claim is not None
    assert json.loads(path.read_text())["owner"] != "other"
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]


def test_the_claims_of_the_dead_are_swept_away(survey):
    process, _ = claiming(survey.root, then="sys.stdin.read()")
    survey.sweep()
    assert survey.path(UNIT, CLAIM).exists()
    process.kill()
    process.wait()
    begun = [survey.path(UNIT, CLAIM).with_name(f".{name}.aside") for name in ("new", "old")]
    for path in begun:
        path.touch()
    os.utime(begun[1], (time.time() - STALE_S - 1,) * 2)
    survey.sweep()
    assert list(survey.path(UNIT, CLAIM).parent.iterdir()) == [begun[0]]  # somebody may be about to claim


def test_a_file_system_without_links_has_claims_too(survey, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    claim = survey.claim(UNIT)
    assert survey.claim(UNIT) is None
    claim.release()
    assert survey.claim(UNIT) is not None


def test_a_claim_that_was_begun_and_not_written_is_somebodys(survey):
    path = survey.path(UNIT, CLAIM)
    path.parent.mkdir(parents=True)
    path.touch()
    assert survey.claim(UNIT) is None


def test_who_lost_its_claim_leaves_that_of_another(survey):
    claim = survey.claim(UNIT)
    path = survey.path(UNIT, CLAIM)
    path.write_text(json.dumps({"owner": "other"}))
    claim.release()
    assert path.exists()


@pytest.mark.parametrize("suffix", [RESULT, FAILURE])
@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", "[" * 100_000, "[]", '{"failure": {"what": 1}}', '{"result": 5, "failure": 5}'),
        '{"failure": {"kind": 1, "line": [], "attempts": ""}}',
    ],
)
def test_a_broken_file_is_one_line(survey, suffix, text):
    path = survey.path(UNIT, suffix)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(SurveyError, match="delete it"):
        (survey.result if suffix == RESULT else survey.failure)(UNIT)


def test_a_folder_of_something_else_is_refused(survey):
    with pytest.raises(SurveyError, match="is no survey's folder"):
        survey.units()
    survey.save_job(Job("scan"), [])
    (survey.root / "units" / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(SurveyError, match="is not what a survey writes"):
        survey.units()
    with pytest.raises(SurveyError, match="missing, or not what a survey writes"):
        survey.job("other")


@pytest.mark.parametrize("name", ["pin", "scan", "jobs", "units"])
def test_a_file_in_the_place_of_a_folder_is_named(survey, name):
    (survey.root / name).symlink_to("nowhere")
    for act in (survey.make, survey.check, survey.units):
        with pytest.raises(SurveyError, match=f"/{name} is where a survey has a folder, and is none: move it away"):
            act()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_is_no_file_is_never_waited_for(survey, make):
    for suffix in (RESULT, FAILURE, CLAIM):
        path = survey.path(UNIT, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    for look in (survey.result, survey.failure):
        with pytest.raises(SurveyError, match="mend or delete it"):
            look(UNIT)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        survey.sweep()


def test_a_failure_takes_the_place_of_a_broken_one(survey):
    survey.save_failure(UNIT, "bug", "a line")
    survey.path(UNIT, FAILURE).write_text("{")
    assert survey.save_failure(UNIT, "gone", "no such") == survey.failure(UNIT) == Failure("gone", "no such", 1)


def test_a_claim_of_later_than_now_is_taken_over(survey):
    assert survey.claim(UNIT) is not None
    path = survey.path(UNIT, CLAIM)
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))
    assert survey.claim(UNIT) is None
    os.utime(path, (time.time() + 2 * STALE_S,) * 2)  # the clock has been set back, and nobody has touched it since
    assert list(survey.claims()) == []
    assert survey.claim(UNIT) is not None


def test_a_folder_that_takes_no_files_can_be_looked_at(survey, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    assert survey.claim(UNIT) is not None
    monkeypatch.setattr(survey, "now", refuse)
    assert [key for key, _ in survey.claims()] == [UNIT.key]
