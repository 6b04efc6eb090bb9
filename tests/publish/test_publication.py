"""Publishing to a server that takes uploads as the Hub does: one commit of what changed, and nothing lost."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from catalogs import REPORTED, entry
from shelves import HELD, NAME, asked, held, write_there, writes

from analyzer.base.errors import CatalogError, SourceError
from analyzer.catalog.files import save_entry, save_reported
from analyzer.publish.publication import publish
from analyzer.publish.report import render_publication

FILES = {"README.md", "data/coordinates.parquet", "catalog/schema.json", "catalog/x.json", "catalog/y.json"}


def test_the_first_time_makes_the_repository_and_one_commit(shelf, catalog):
    done = publish(catalog, NAME, token="writer")
    assert set(held(shelf)) == FILES | {".gitattributes"}
    assert held(shelf)["catalog/x.json"] == (catalog / "x.json").read_bytes()
    assert held(shelf)["catalog/schema.json"] == (catalog / "schema.json").read_bytes()
    assert len(shelf.repositories[HELD].history) == 2  # the Hub's own initial commit, and this one
    assert shelf.uploads.messages == ["superweight catalog: 2 families, 1 verified entry, 1 reported"]
    assert (done.creates, done.commit) == (True, shelf.repositories[HELD].branches["main"])
    assert done.commit_url == f"{shelf.url}/{HELD}/commit/{done.commit}"
    assert {(change.path, change.change) for change in done.changes} == {(path, "added") for path in FILES}
    assert len(shelf.asked("cdn", "PUT")) == 1  # the table, which the Hub keeps outside of git
    assert all(request.authorization is None for request in shelf.asked("cdn", "PUT"))
    assert shelf.repositories[HELD].token is None


def test_a_private_one(shelf, catalog):
    publish(catalog, NAME, token="writer", private=True)
    assert shelf.repositories[HELD].token == "writer"
    assert publish(catalog, NAME, token="writer", private=True).changes == ()


def test_private_is_not_promised_for_one_that_is_public(published, catalog):
    with pytest.raises(SourceError, match="exists and is public"):
        publish(catalog, NAME, token="writer", private=True)
    assert writes(published) == []


@pytest.mark.parametrize("token", ["writer", None])
def test_nothing_is_uploaded_when_nothing_changed(published, catalog, token):
    done = publish(catalog, NAME, token=token)
    assert asked(published) == [("GET", "super-weights")]
    assert (done.changes, done.commit, done.unchanged) == ((), None, 5)
    assert "Nothing has changed: nothing uploaded." in render_publication(done)


def test_only_what_changed_is_uploaded(published, catalog):
    before = dict(held(published))
    theirs = {".gitattributes": b"by hand\n", "logo.png": b"a picture", "notes/catalog.json": b"{}"}
    write_there(published, theirs)
    save_reported(catalog, "y", [{**REPORTED, "model": "me/y-1b", "layer": 2}])
    done = publish(catalog, NAME, token="writer")
    assert [(change.path, change.change) for change in done.changes] == [
        ("README.md", "changed"),
        ("catalog/y.json", "changed"),
        ("data/coordinates.parquet", "changed"),
    ]
    assert done.unchanged == 2
    assert len(published.repositories[HELD].history) == 4  # two before, the one by hand, and this one
    (commit,) = (request for request in published.requests if request.path.endswith("/commit/main"))
    assert [json.loads(line)["key"] for line in commit.body.splitlines()] == ["header", "file", "file", "lfsFile"]
    after = held(published)
    ours = {"README.md", "catalog/y.json", "data/coordinates.parquet"}
    assert {path for path in after if after[path] != before.get(path)} == ours | set(theirs)
    assert {path: after[path] for path in theirs} == theirs


def test_a_dry_run_writes_nothing_and_needs_no_token(published, catalog):
    first = publish(catalog, "me/another", dry_run=True)
    assert (first.creates, first.commit, len(first.changes)) == (True, None, 5)
    save_entry(catalog, "x", entry(note="New."))
    done = publish(catalog, NAME, dry_run=True)
    assert [change.path for change in done.changes] == ["README.md", "catalog/x.json", "data/coordinates.parquet"]
    assert writes(published) == []
    assert "me/another" not in str(published.repositories)
    text = render_publication(done)
    assert "Nothing was uploaded: this was a dry run." in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_family_that_moved_is_deleted_in_the_same_commit(published, catalog):
    content = json.loads((catalog / "y.json").read_text())
    (catalog / "y.json").unlink()
    save_reported(catalog, "z", content["reported"])
    done = publish(catalog, NAME, token="writer")
    assert {(change.path, change.change) for change in done.changes} >= {
        ("catalog/y.json", "deleted"),
        ("catalog/z.json", "added"),
    }
    assert "catalog/y.json" not in held(published)
    assert len(published.uploads.messages) == 2


def test_what_somebody_else_has_published_is_not_lost(published, catalog, tmp_path):
    theirs = tmp_path / "theirs"
    save_entry(theirs, "x", entry())
    save_reported(theirs, "y", [{**REPORTED, "model": "me/y-1b"}, {**REPORTED, "model": "me/y-2b"}])
    save_entry(theirs, "w", entry("you/w-1b", "b" * 40))
    publish(theirs, NAME, token="writer")
    published.forget()
    lost = "has what this catalog lacks: the entry of you/w-1b@bbbbbbbbbbbb and 1 more; .* --replace"
    for dry_run in (True, False):
        with pytest.raises(CatalogError, match=lost):
            publish(catalog, NAME, token="writer", dry_run=dry_run)
    assert writes(published) == []
    publish(catalog, NAME, token="writer", replace=True)
    assert "catalog/w.json" not in held(published)
    assert held(published)["catalog/y.json"] == (catalog / "y.json").read_bytes()


def test_a_source_that_somebody_else_has_added_is_not_lost(published, catalog, tmp_path):
    source = {"name": "Another paper", "kind": "paper", "url": "https://example.org/q", "note": None}
    theirs = tmp_path / "theirs"
    save_entry(theirs, "x", entry())
    save_reported(theirs, "y", [{**REPORTED, "model": "me/y-1b", "sources": [*REPORTED["sources"], source]}])
    publish(theirs, NAME, token="writer")
    with pytest.raises(CatalogError, match=r"the source Another paper of me/y-1b 1,2,3;"):
        publish(catalog, NAME, token="writer")


@pytest.mark.parametrize("what", ["weight", "note"])
def test_a_clone_that_is_stale_takes_nothing_of_an_entry_away(published, catalog, tmp_path, what):
    weights = [*entry()["super_weights"], {**entry()["super_weights"][0], "layer": 3}]
    theirs = tmp_path / "theirs"
    save_entry(theirs, "x", entry(super_weights=weights) if what == "weight" else entry(note="Theirs."))
    save_reported(theirs, "y", [{**REPORTED, "model": "me/y-1b"}])
    publish(theirs, NAME, token="writer")
    published.forget()
    lost = r"the super weight 3,2,3 of" if what == "weight" else "the note on"
    with pytest.raises(CatalogError, match=f"has what this catalog lacks: {lost} me/model-1b@aaaaaaaaaaaa; bring it"):
        publish(catalog, NAME, token="writer")
    assert writes(published) == []
    publish(catalog, NAME, token="writer", replace=True)
    assert held(published)["catalog/x.json"] == (catalog / "x.json").read_bytes()


def test_one_row_is_one_row(shelf, tmp_path):
    save_entry(tmp_path / "one", "x", entry())
    assert "; 1 row in the table" in render_publication(publish(tmp_path / "one", NAME, dry_run=True))


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("path", ["catalog/x.json", "catalog/schema.json", "catalog/new.json"])
def test_a_newer_schema_is_never_overwritten(published, catalog, path, replace):
    newer = {"schema_version": 6, "properties": {"schema_version": {"const": 6}}}
    write_there(published, {path: json.dumps(newer).encode()})
    with pytest.raises(CatalogError, match=f"{path} is of schema version 6, newer than the 5 of this tool: upgrade"):
        publish(catalog, NAME, token="writer", replace=replace)


@pytest.mark.parametrize("content", [b"not JSON", b"[]", b'{"schema_version": 3}', b"\xff" * 10])
def test_a_file_that_cannot_be_read_is_overwritten_on_demand_only(published, catalog, content):
    write_there(published, {"catalog/y.json": content})
    with pytest.raises(CatalogError, match=r"y.json is no catalog file that this tool can read .* --replace"):
        publish(catalog, NAME, token="writer")
    publish(catalog, NAME, token="writer", replace=True)
    assert held(published)["catalog/y.json"] == (catalog / "y.json").read_bytes()


@pytest.mark.parametrize("edited", [False, True])
def test_a_card_by_hand_is_overwritten_on_demand_only(published, catalog, edited):
    card = held(published)["README.md"]
    write_there(published, {"README.md": card + b"\nMy words.\n" if edited else b"# Mine\n"})
    with pytest.raises(CatalogError, match=r"README.md that was written or edited by hand: --replace"):
        publish(catalog, NAME, token="writer")
    publish(catalog, NAME, token="writer", replace=True)
    assert held(published)["README.md"] == card


def test_a_table_of_somebody_else(published, catalog):
    write_there(published, {"data/coordinates.parquet": b"PAR1"}, delete=FILES - {"data/coordinates.parquet"})
    with pytest.raises(CatalogError, match=r"has a data/coordinates.parquet of its own"):
        publish(catalog, NAME, token="writer")


def test_the_same_table_of_another_version_of_pyarrow_is_no_change(published, catalog):
    table = pq.read_table(io.BytesIO(held(published)["data/coordinates.parquet"]))
    other = io.BytesIO()
    pq.write_table(table, other, compression="zstd")
    write_there(published, {"data/coordinates.parquet": other.getvalue()})
    assert publish(catalog, NAME, token="writer").changes == ()
    assert writes(published) == []
    pq.write_table(table.slice(1), other := io.BytesIO())
    write_there(published, {"data/coordinates.parquet": other.getvalue()})
    assert [change.path for change in publish(catalog, NAME, token="writer").changes] == ["data/coordinates.parquet"]


def test_a_broken_catalog_is_refused_before_the_hub_is_asked(shelf, catalog, tmp_path):
    (catalog / "y.json").write_text((catalog / "y.json").read_text().replace('"layer": 1', '"layer": -1'))
    with pytest.raises(CatalogError, match=r"y.json"):
        publish(catalog, NAME, token="writer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match="nothing to publish"):
        publish(tmp_path / "empty", NAME, token="writer")
    assert shelf.requests == []


def test_the_command(shelf, catalog, superweight):
    xet = {"HF_HUB_DISABLE_XET": "0"}  # as it is for everybody; a file this small goes without
    out, err = superweight("catalog", "publish", "--repo-id", NAME, "--token", "writer\n", **xet).communicate()
    commit = shelf.repositories[HELD].branches["main"]
    assert out.endswith(f"in one commit:\n{shelf.url}/{HELD}/commit/{commit}\n")
    assert err == ""
    save_entry(catalog, "x", entry(note="New."))
    out, err = superweight("catalog", "publish", "--repo-id", NAME, "--json", "--dry-run", "--quiet").communicate()
    done = json.loads(out)
    assert err == ""
    assert (done["dry_run"], done["creates"], done["parent"], done["commit"]) == (True, False, commit, None)
    assert [change["path"] for change in done["changes"]][1:] == ["catalog/x.json", "data/coordinates.parquet"]
    process = superweight("catalog", "publish", "--repo-id", NAME)
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: writing to datasets/me/super-weights needs a token")


@pytest.mark.parametrize("name", ["super-weights", "me/x/y", "me/", "me/a b", "me/..", "me/x\x1b[2J", "hf.co/me/x"])
def test_a_name_that_is_none_is_wrong_usage(name):
    from click.testing import CliRunner

    from analyzer.cli.main import cli

    result = CliRunner().invoke(cli, ["catalog", "publish", "--repo-id", name, "--catalog", "/nowhere"])
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "owner/name" in result.output


def test_datasets_reads_the_published_repository(shelf, catalog, tmp_path):
    from analyzer.catalog.files import read_documents
    from analyzer.publish.dataset import COLUMNS, rows_of

    publish(catalog, NAME, token="writer")
    script = (
        "import datasets, json, sys\n"
        f"table = datasets.load_dataset({NAME!r}, split='train')\n"
        "json.dump([table.column_names, list(table)], sys.stdout)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": shelf.url, "HF_HOME": str(tmp_path / "home")}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [list(COLUMNS), rows_of(read_documents(catalog))]


@pytest.mark.parametrize("more", [(), ("--quiet",)])
def test_no_bar_is_drawn_where_there_is_no_terminal(shelf, catalog, monkeypatch, more):
    monkeypatch.setattr("hub_server.LARGE", (".parquet", ".json"))  # of several such files the client draws one
    environment = {**os.environ, "HF_ENDPOINT": shelf.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    command = [sys.executable, "-m", "analyzer", "catalog", "publish", "--repo-id", NAME, "--catalog", str(catalog)]
    done = subprocess.run([*command, "--token", "writer", *more], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_neither_pyarrow_nor_the_hubs_client():
    script = (
        "import sys\n"
        "from analyzer.cli.main import cli\n"
        "try: cli(['catalog', 'publish', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('pyarrow', 'huggingface_hub', 'analyzer.publish.publication')\n"
        "sys.exit(any(name in sys.modules for name in heavy))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment).returncode == 0
