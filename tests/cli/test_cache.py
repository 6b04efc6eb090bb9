"""The command that shows and clears what is kept of scans."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from results import SUMMARY, same

from analyzer.cli.main import cli
from analyzer.scan.kept import ResultCache, cache_folder


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Two entries, the leftover of a third, and what is not ours."""
    monkeypatch.setenv("SUPERWEIGHT_CACHE", str(tmp_path))
    kept = ResultCache(cache_folder())
    kept.save("key", 3, SUMMARY)
    kept.save("another key", 3, SUMMARY)
    size = sum(path.stat().st_size for path in kept.folder.glob("*/*"))
    (entry := next(kept.folder.glob("*/*.json"))).with_suffix(".0123456789abcdef.tmp").write_text("12345")
    (entry.parent / "notes.txt").write_text("mine")
    (kept.folder / "mine.json").write_text("mine")
    return kept, size + 5


def test_the_command_shows_the_cache(entries):
    kept, size = entries
    result = CliRunner().invoke(cli, ["cache"])
    assert (result.exit_code, result.output) == (0, f"Kept in {kept.folder}: 3 entries, {size:,} bytes.\n")
    shown = json.loads(CliRunner().invoke(cli, ["cache", "--json"]).output)
    assert shown == {"folder": str(kept.folder), "entries": 3, "bytes": size, "cleared": False}
    assert same(kept.load("key", 3), SUMMARY)


def test_the_command_clears_the_cache(entries):
    kept, size = entries
    result = CliRunner().invoke(cli, ["cache", "--clear"])
    assert (result.exit_code, result.output) == (0, f"Cleared {kept.folder}: 3 entries, {size:,} bytes.\n")
    assert {path.name for path in kept.folder.rglob("*") if path.is_file()} == {"notes.txt", "mine.json"}
    assert kept.load("key", 3) is None
    shown = json.loads(CliRunner().invoke(cli, ["cache", "--clear", "--json"]).output)
    assert shown == {"folder": str(kept.folder), "entries": 0, "bytes": 0, "cleared": True}


def test_what_may_not_be_cleared(entries, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    result = CliRunner().invoke(cli, ["cache", "--clear"], standalone_mode=False)
    assert str(result.exception) == f"cannot clear {entries[0].folder}: Permission denied"


def test_the_home_of_nobody(superweight):
    process = superweight("cache", SUPERWEIGHT_CACHE="~nobody-at-all/cache")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: SUPERWEIGHT_CACHE is ~nobody-at-all/cache, which is no folder (")
    assert err.count("\n") == 1


def test_the_command_before_any_scan(superweight, tmp_path):
    process = superweight("cache")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == f"Kept in {tmp_path / 'superweight-cache' / 'scans'}: 0 entries, 0 bytes.\n"
