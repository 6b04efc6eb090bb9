"""A catalog, and a Hub that takes it."""

import pytest
from catalogs import REPORTED, entry
from shelves import NAME

from analyzer.catalog.files import save_entry, save_reported
from analyzer.publish.publication import publish


@pytest.fixture
def catalog(tmp_path):
    """A catalog of two families."""
    save_entry(tmp_path / "catalog", "x", entry())
    save_reported(tmp_path / "catalog", "y", [{**REPORTED, "model": "me/y-1b"}])
    return tmp_path / "catalog"


@pytest.fixture
def shelf(hub):
    """A Hub where `writer` may write to what `me` has, and `reader` may only read it."""
    hub.uploads.tokens = {"writer": ("me", "write"), "reader": ("me", "read"), "stranger": ("you", "write")}
    return hub


@pytest.fixture
def published(shelf, catalog):
    """The Hub after a first publication."""
    publish(catalog, NAME, token="writer")
    shelf.forget()
    return shelf
