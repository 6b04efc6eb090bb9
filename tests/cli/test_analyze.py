"""The main job from the command line."""

import errno
import json
import os

from catalogs import REPORTED
from commands import fails
from models import COL, LAYER, PROMPT, ROW

from analyzer.catalog.files import read_documents, save_reported
from analyzer.catalog.lookup import reported_on


def test_analyze_of_a_model_with_a_published_record(here, planted, tmp_path):
    seen = {**REPORTED, "model": "me/Planted-1B", "layer": LAYER, "row": ROW, "col": COL, "value": None}
    save_reported(tmp_path / "c", "planted", [seen, {**seen, "col": COL + 1}])
    command = ["analyze", planted, "--prompt", PROMPT, "--text", planted / "text.txt"]
    result = here(*command, "--catalog", tmp_path / "c")
    assert f"Reported by A paper: {LAYER},{ROW},{COL}: confirmed here (they name no revision)." in result.stdout
    assert f"Reported by A paper: {LAYER},{ROW},{COL + 1}: not seen here (they name no revision)." in result.stdout
    found = json.loads(here(*command, "--catalog", tmp_path / "c", "--json").stdout)
    assert [each["agrees"] for each in found["agrees_with_reported"]] == [True, False]
    assert [item["col"] for item in reported_on(read_documents(tmp_path / "c"), "planted-1b")] == [COL, COL + 1]
    assert reported_on(read_documents(tmp_path / "c"), "you/planted-1b") == []
    shown = here("catalog", "show", "ME/planted-1b", "--catalog", tmp_path / "c")
    assert "Reported by others, not verified here" in shown.stdout
    assert "confirmed" not in shown.stdout


def test_analyze_writes_the_entry_once_and_the_catalog_commands_read_it(here, planted, tmp_path):
    options = ["--prompt", PROMPT, "--text", planted / "text.txt", "--catalog", tmp_path / "c", "--note", "Planted."]
    first = here("analyze", planted, *options)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "c" / "planted.json"
    assert f"Catalog entry written to {path}" in first.stdout
    assert max(map(len, first.stdout.splitlines()[:-1])) <= 100
    before = path.read_bytes()
    assert str(planted.parent) not in before.decode()

    again = json.loads(here("analyze", planted, *options, "--json").stdout)
    assert path.read_bytes() == before
    assert b"seconds" not in before
    assert again["cost"]["seconds_computing"] > 0
    assert again["catalog_file"] == str(path)

    listed = here("catalog", "list", "--catalog", tmp_path / "c")
    assert "planted-1b" in listed.stdout
    shown = here("catalog", "show", "planted-1b", "--catalog", tmp_path / "c")
    assert "Planted." in shown.stdout
    assert "confirmed" in shown.stdout
    valid = here("catalog", "validate", "--catalog", tmp_path / "c")
    assert (valid.returncode, valid.stdout) == (0, "All valid. Files: 1, entries: 1.\n")

    path.write_text(path.read_text().replace('"row": 77', '"row": 9999', 1))
    invalid = here("catalog", "validate", "--catalog", tmp_path / "c")
    assert invalid.returncode == 1
    assert "planted.json" in invalid.stderr
    assert "row 9999" in invalid.stderr


def test_a_destination_that_cannot_be_written_is_known_before_the_work(here, spiked, tmp_path):
    (tmp_path / "tiny.json").write_text("{}")
    # The folder is no model that could be loaded: the catalog is looked at before that.
    fails(here("analyze", spiked, "--catalog", tmp_path), "tiny.json", "schema_version")
    fails(here("analyze", spiked, "--catalog", tmp_path, "--family", "../up"), "cannot name a family")


def test_the_result_is_printed_also_if_its_entry_cannot_be_written(here, planted, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    options = ["--prompt", PROMPT, "--text", planted / "text.txt", "--catalog", tmp_path, "--json"]
    result = here("analyze", planted, *options)
    assert result.returncode == 1
    assert result.stderr.endswith("No space left on device; what was there is unchanged\n")
    assert json.loads(result.stdout)["catalog_file"] is None
    assert not (tmp_path / "planted.json").exists()
