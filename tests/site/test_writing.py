"""Writing the catalog's page, from Python and by the command: it harms nothing that is there, and says what it did."""

import json
import resource
import subprocess
import sys

import pytest
from catalogs import REPORTED as ITEM
from site_pages import ENTRIES, REPORTED, ROOT, documents

from analyzer.base.errors import CatalogError
from analyzer.catalog.files import read_documents
from analyzer.site.page import render_site, write_site


@pytest.fixture(scope="module")
def site():
    return render_site(read_documents(ROOT / "catalog"))


def superweight(*arguments, **options):
    command = [sys.executable, "-m", "analyzer", "catalog", "site", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


def test_an_empty_catalog_is_no_page(tmp_path):
    (tmp_path / "catalog").mkdir()
    write_site(render_site(documents(reported=[ITEM])), tmp_path / "site")
    before = (tmp_path / "site" / "index.html").read_bytes()
    done = superweight(tmp_path / "site", "--catalog", tmp_path / "catalog")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{tmp_path / 'catalog'} has no files: there is nothing to" in done.stderr
    assert (tmp_path / "site" / "index.html").read_bytes() == before


def test_it_writes_over_its_own_page_and_over_nothing_else(tmp_path, site):
    folder = tmp_path / "new" / "site"
    assert {path.name for path in write_site(site, folder)} == {"index.html", "README.md"}
    assert (folder / "README.md").read_text("utf-8").startswith("---\ntitle: Super weight catalog\n")
    (folder / "README.md").write_text("mine")
    (folder / "CNAME").write_text("mine too")
    (path,) = write_site(render_site(documents(reported=[ITEM])), folder)
    assert path.name == "index.html" and b"model-1b" in path.read_bytes()
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("nowhere")
    assert write_site(render_site(documents(reported=[ITEM])), folder) == [path]
    assert (folder / "README.md").is_symlink() and not (folder / "README.md").exists()
    (folder / "README.md").unlink()
    (folder / "README.md").write_text("mine")
    assert (folder / "README.md").read_text() == "mine" and (folder / "CNAME").read_text() == "mine too"
    assert {p.name for p in folder.iterdir()} == {"index.html", "README.md", "CNAME"}  # no temporary file
    path.write_text("<!doctype html><title>My own</title>")
    with pytest.raises(CatalogError, match="not a page that this tool wrote"):
        write_site(site, folder)
    assert "My own" in path.read_text()


@pytest.mark.parametrize("what", ["file", "below a file", "a folder for a page", "a link for a page"])
def test_what_cannot_be_written_is_refused(tmp_path, site, what):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "site"
    if what == "a folder for a page":
        (folder / "index.html").mkdir(parents=True)
    elif what == "a link for a page":
        folder.mkdir()
        (folder / "index.html").symlink_to(tmp_path / "file")
    else:
        folder = tmp_path / "file" / "site" if what == "below a file" else tmp_path / "file"
    with pytest.raises(CatalogError):
        write_site(site, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_says_what_it_wrote_and_how_to_open_it(tmp_path):
    page = tmp_path / "site" / "index.html"
    done = superweight(tmp_path / "site", "--catalog", "catalog")
    assert done.returncode == 0 and done.stderr == ""
    assert str(page) in done.stdout and page.as_uri() in done.stdout
    before = page.read_bytes()
    again = json.loads(superweight(tmp_path / "site", "--json").stdout)
    assert again["page"] == str(page) and str(page) in again["files"]
    assert (again["entries"], again["reported"]) == (len(ENTRIES), len(REPORTED))
    assert page.read_bytes() == before


def test_a_full_disk_leaves_the_old_page(tmp_path):
    old = render_site(documents(reported=[ITEM]))
    write_site(old, tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = superweight(tmp_path, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: cannot write ") and done.stderr.count("\n") == 1
    assert (tmp_path / "index.html").read_bytes() == old["index.html"]
    assert {p.name for p in tmp_path.iterdir()} == {"index.html", "README.md"}


def test_errors_of_the_catalog_are_one_line(tmp_path):
    missing = superweight(tmp_path / "site", "--catalog", tmp_path / "none")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.json").write_text("{}")
    broken = superweight(tmp_path / "site", "--catalog", tmp_path / "broken")
    for done in (missing, broken):
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "site").exists()
