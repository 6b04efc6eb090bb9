"""Massive channels and the prefix, as runtimes take them."""

import json

import pytest
from catalogs import METHOD, entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.exports.channels import channels_of, prefix_of

CHANNELS = [
    {"channel": 77, "layers": [2, 10], "magnitudes": [8.0, 9.0]},
    {"channel": 5, "layers": [10], "magnitudes": [4.0]},
]
PREFIX = {"ids": [198, 1], "tokens": ["\n", "<s>"], "outlier_tokens": 1}
FULL = entry(massive_channels=CHANNELS, prefix=PREFIX)


def test_channels_go_by_layer_the_largest_first():
    assert json.loads(json.dumps(channels_of("m", [entry(), FULL]))) == {
        "model": "me/model-1b",
        "commit": "a" * 40,
        "layers": {
            "2": {"channels": [77], "magnitudes": [8.0]},
            "10": {"channels": [77, 5], "magnitudes": [9.0, 4.0]},
        },
    }


def test_a_prefix_is_ids_and_texts():
    assert prefix_of("m", [FULL]) == {
        "model": "me/model-1b", "commit": "a" * 40, "ids": [198, 1], "tokens": ["\n", "<s>"],
    }  # fmt: skip


def test_the_tools_own_settings_are_meant_and_what_is_not_there_is_one_line():
    default = entry(massive_channels=[], method={**METHOD, "settings": "default"})
    assert channels_of("m", [FULL, default])["layers"] == {}
    with pytest.raises(CatalogError, match=r"the catalog has no prefix of m: run `superweight analyze`"):
        prefix_of("m", [default])
    with pytest.raises(CatalogError, match=r"the analysis of m suggests no prefix: there is none to export"):
        prefix_of("m", [default, entry(prefix=None)])
    other = entry(commit="b" * 40, massive_channels=[])
    with pytest.raises(CatalogError, match=r"has 2 analyses of m: name one of me/model-1b@aaaaaaa.*, me/model-1b@bbbb"):
        channels_of("m", [FULL, other])
