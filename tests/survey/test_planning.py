"""Lists and plans: what their lines mean, how they are shared out, and what is refused."""

import json
from dataclasses import asdict

import pytest

from analyzer.base.errors import SurveyError
from analyzer.scan.records import ScanSettings
from analyzer.survey.planning import Pin, part_of, plan_lines, read_list, units_of
from analyzer.survey.store import Folder
from analyzer.survey.units import Job, pin_unit

PIN = Pin("owner/name@abc", "owner/name", "main", "abc", None, "llama", 10, 100)


def written(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def test_a_list_has_a_model_a_line(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "a.gguf").touch()
    monkeypatch.chdir(tmp_path)
    text = "# mine\n\nowner/name@v1  # the first\n  owner/C#-model\nowner/name@v1\n./here\n"
    text += "./a.gguf\nhere:x.gguf\nowner/n:x.gguf\n"
    assert read_list(written(tmp_path, text)) == [
        "owner/name@v1",
        "owner/C#-model",
        str(tmp_path / "here"),
        str(tmp_path / "a.gguf"),
        f"{tmp_path / 'here'}:x.gguf",
        "owner/n:x.gguf",
    ]


def test_a_plan_says_what_is_known_of_each(tmp_path):
    folder = Folder(tmp_path / "s")
    second = Pin(**{**asdict(PIN), "name": "owner/second@abc"})
    folder.save_result(pin_unit("owner/second"), {"result": asdict(second)})
    folder.save_failure(pin_unit("owner/third"), "gone", "there is no such model")
    lines = plan_lines(folder, [PIN, "owner/second", "owner/third", "owner/fourth"])
    assert json.loads(lines[3]) == {"name": "owner/third", "failure": "gone", "line": "there is no such model"}
    path = written(tmp_path, "\n".join(lines))
    assert read_list(path) == [PIN, second, "owner/third", "owner/fourth"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# nothing\n", "names no model"),
        ("owner/\x1b[2J\n", "line 1 of .* is no model's name: owner/"),
        ("x" * 2000, "is no model's name"),
        ('{"superweight_plan": 2}\n', "no plan of version 1"),
        ("{\n", "line 1 of the plan .* is broken"),
        ('{"superweight_plan": 1}\n{"a": 1}\n', "line 2 of the plan .* is broken"),
        ('{"superweight_plan": 1}\n{"weight_bytes": 1}\n', "line 2 of the plan .* has not the form"),
        ('{"superweight_plan": 1}\n{"name": null}\n', "line 2 of the plan .* is broken"),
        ('{"superweight_plan": 1}\n{"name": "a\\u0000b"}\n', "line 2 of .* is no model's name"),
        *(
            ('{"superweight_plan": 1}\n' + json.dumps({**asdict(PIN), **wrong}), "has not the form")
            for wrong in (
                {"weight_bytes": -1},
                {"weight_bytes": 10**400},
                {"commit": []},
                {"name": ""},
                {"commit": None},  # neither a commit nor a folder's state: any would do
                {"state": "abc"},
            )
        ),
        ('{"superweight_plan": 1}\n' + json.dumps({**asdict(PIN), "name": 5}), "has not the form"),
    ],
)
def test_what_is_no_list_and_no_plan(tmp_path, text, line):
    with pytest.raises(SurveyError, match=line):
        read_list(written(tmp_path, text))
    with pytest.raises(SurveyError, match="is no list of models"):
        read_list(tmp_path)


def test_what_a_job_reads():
    assert PIN.needs(Job("scan")) == 10
    assert PIN.needs(Job("scan", ScanSettings("gain"))) == 30
    assert PIN.needs(Job("verify")) == 100
    untold = Pin(**{**asdict(PIN), "scan_bytes": None})
    assert untold.needs(Job("scan")) == 100


def test_shards_are_all_and_share_nothing(tmp_path):
    folder = Folder(tmp_path)
    pins = [Pin(f"owner/n{n}@abc", f"owner/n{n}", None, "abc", None, "llama", (n * 7) % 10, 100) for n in range(10)]
    whole = units_of(folder, [*pins, pins[3], "owner/gone"], Job("scan"))
    assert [unit.needs for unit in whole] == [0, *range(10)]
    assert [unit.do for unit in whole].count("pin") == 1
    parts = [part_of([*pins, "owner/gone"], Job("scan"), (i, 3)) for i in (1, 2, 3)]
    shards = [units_of(folder, part, Job("scan")) for part in parts]
    assert sorted(unit.key for shard in shards for unit in shard) == sorted(unit.key for unit in whole)
    assert [sum(unit.needs for unit in shard) for shard in shards] == [2 + 5 + 8, 0 + 3 + 6 + 9, 1 + 4 + 7]


def test_a_model_that_is_back_for_one_shard_takes_none_from_another(tmp_path):
    """What the plan could not open may open now, here and not there: each shard has the same part all the same."""
    pins = [Pin(f"owner/n{n}@abc", f"owner/n{n}", None, "abc", None, "llama", n, 100) for n in range(1, 6)]
    folders = [Folder(tmp_path / name) for name in ("before", "after")]
    back = Pin("owner/back@abc", "owner/back", None, "abc", None, "llama", 99, 100)
    folders[1].save_result(pin_unit("owner/back"), {"result": asdict(back)})
    parts = [part_of([*pins, "owner/back"], Job("scan"), (i, 2)) for i in (1, 2)]
    found = [units_of(folder, part, Job("scan")) for folder, part in zip(folders, parts, strict=True)]
    assert sorted(unit.model for part in found for unit in part) == sorted(["owner/back", *(p.model for p in pins)])


def test_names_of_one_commit_are_one_unit(tmp_path):
    folder = Folder(tmp_path)
    other = Pin(**{**asdict(PIN), "revision": "v1"})
    folder.save_result(pin_unit("owner/name@v1"), {"result": asdict(other)})
    names = [PIN, "owner/name@v1", other]
    assert plan_lines(folder, names) == plan_lines(folder, [PIN])
    assert [unit.revision for unit in units_of(folder, names, Job("scan"))] == ["main"]


def test_a_list_of_windows_is_read_and_one_that_is_not_utf8_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffowner/name\r\n".encode())
    assert read_list(path) == ["owner/name"]
    path.write_bytes("owner/name".encode("utf-16"))
    with pytest.raises(SurveyError, match="is not UTF-8: save it as that"):
        read_list(path)
