"""The files of the dataset: its table against the JSON files read independently, its card with hostile names."""

import io
import json
from pathlib import Path

import markdown_it
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from catalogs import REPORTED, entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.files import read_documents
from analyzer.publish.card import card_of, is_own_card, summary_of
from analyzer.publish.dataset import (
    CARD,
    COLUMNS,
    TABLE,
    dataset_files,
    is_same_table,
    keys_of,
    lost_between,
    lost_rows,
    rows_of,
    table_of,
)

CATALOG = Path(__file__).parents[2] / "catalog"
DOCUMENTS = read_documents(CATALOG)
ORIGINALS = {path.name: path.read_bytes() for path in CATALOG.glob("*.json")}
HOSTILE = (
    "a|b](https://evil.org) <script>alert(1)</script> `x` **y** ![z](//evil.org/p.png) www.evil.org me@evil.org &lt;"
)


@pytest.fixture(scope="module")
def files():
    return dataset_files(DOCUMENTS, ORIGINALS, "me/super-weights")


def rows_in(files):
    return pq.read_table(io.BytesIO(files[TABLE])).to_pylist()


def document(*, entries=(), reported=()):
    return {"x": {"schema_version": 5, "family": "x", "entries": list(entries), "reported": list(reported)}}


def test_the_json_files_are_the_catalogs_to_the_byte(files):
    assert {path: data for path, data in files.items() if path.startswith("catalog/")} == {
        f"catalog/{name}": data for name, data in ORIGINALS.items()
    }


def test_the_table_says_what_the_json_says(files):
    rows = rows_in(files)
    seen = []
    for path in sorted(CATALOG.glob("*.json")):
        content = json.loads(path.read_text()) if path.name != "schema.json" else {"entries": [], "reported": []}
        for one in content["entries"]:
            for weight in one["super_weights"]:
                row = rows.pop(0)
                assert (row["model"], row["revision"], row["family"]) == (one["model"], one["commit"], path.stem)
                assert (row["standing"], row["verdict"], row["note"]) == ("verified", one["verdict"], one["note"])
                for name in (
                    "layer", "expert", "row", "col", "value", "status", "effect", "share", "activation_collapse",
                    "loss", "loss_zeroed", "control_loss_max", "loss_tokens", "static_rank", "round",
                ):  # fmt: skip
                    assert row[name] == weight[name], name
                for name in ("module", "row_rank", "rank_in_128", "rank_in_32", "row_others_max"):
                    assert name not in weight or row[name] == weight[name], name
                for name in ("kl_divergence", "top1_agreement", "destroyed"):  # which older entries lack
                    assert row[name] == weight.get(name), name
                assert row["loss_increase"] == pytest.approx(weight["loss_zeroed"] - weight["loss"], abs=1e-9)
                assert row["sources"] == []
                seen.append("verified")
        for item in content["reported"]:
            row = rows.pop(0)
            for name in ("model", "revision", "standing", "layer", "expert", "row", "col", "value", "reason"):
                assert row[name] == item[name], name
            assert row["sources"] == [source["name"] for source in item["sources"]]
            assert row["source_kinds"] == [source["kind"] for source in item["sources"]]
            assert row["source_urls"] == [source["url"] for source in item["sources"]]
            assert row["source_notes"] == [source["note"] for source in item["sources"]]
            assert (row["status"], row["effect"], row["loss"], row["tool"]) == (None, None, None, None)
            seen.append(item["standing"])
    assert rows == []
    assert set(seen) == {"verified", "reported", "disputed", "none_reported"}


def test_the_columns_have_one_type_whatever_is_in_them():
    full, empty = table_of(DOCUMENTS), table_of({})
    assert full.schema == empty.schema
    assert full.column_names == list(COLUMNS)
    assert [str(full.schema.field(name).type) for name in ("layer", "col", "value", "sources")] == [
        "int32", "int32", "double", "list<item: string>",
    ]  # fmt: skip
    assert {row["layer"] for row in rows_of(DOCUMENTS) if row["standing"] == "none_reported"} == {None}


def test_an_analysis_that_found_nothing_is_a_row():
    (row,) = rows_of(document(entries=[entry(verdict="none", super_weights=[])]))
    assert (row["standing"], row["verdict"], row["layer"], row["value"]) == ("verified", "none", None, None)


def test_the_module_is_named_where_it_is_known():
    modules = {row["model"]: row["module"] for row in rows_of(DOCUMENTS) if row["layer"] is not None}
    assert modules["mistralai/Mistral-7B-v0.1"] == "model.layers.1.mlp.down_proj"
    assert modules["allenai/OLMo-1B"] is None


def test_headroom_and_routing_are_beside_the_weights_that_they_are_of():
    fit = {"limit": 65504.0, "largest": 70000.0, "layer": 2, "where": "residual", "overflows_from": 1}
    weight = {**entry()["super_weights"][0], "expert": 3}
    routing = [
        {"layer": weight["layer"], "expert": 2, "chosen": 1, "tokens": 120, "mean_weight": 0.5},
        {"layer": weight["layer"], "expert": 3, "chosen": 30, "tokens": 120, "mean_weight": 0.25},
    ]
    headroom = {"prompts": 12, "layers": [], "unseen": [], "float16": fit, "float8_e4m3": fit}
    full = entry(super_weights=[weight, {**weight, "expert": None}], routing=routing, headroom=headroom)
    first, other = rows_of(document(entries=[full]))
    assert (first["expert_share"], first["expert_weight"]) == (0.25, 0.25)
    assert (other["expert_share"], other["expert_weight"]) == (None, None)
    assert (first["largest_magnitude"], first["float16_overflows_from"]) == (70000.0, 1)
    (older,) = rows_of(document(entries=[entry()]))
    assert (older["largest_magnitude"], older["float16_overflows_from"]) == (None, None)


def test_a_number_that_no_table_can_hold():
    weight = {**entry()["super_weights"][0], "static_rank": 10**30}
    with pytest.raises(CatalogError, match="static_rank that no table can hold"):
        table_of(document(entries=[entry(super_weights=[weight])]))


def test_the_same_catalog_gives_the_same_bytes(files):
    assert dataset_files(read_documents(CATALOG), ORIGINALS, "me/super-weights") == files


def test_tables_are_the_same_by_what_they_say(files):
    table = pq.read_table(io.BytesIO(files[TABLE]))
    other = io.BytesIO()
    pq.write_table(table, other, compression="zstd", row_group_size=10)
    assert other.getvalue() != files[TABLE]
    assert is_same_table(other.getvalue(), files[TABLE])
    for changed in (table.slice(1), table.drop_columns(["note"]), table.take([1, 0, *range(2, len(table))])):
        other = io.BytesIO()
        pq.write_table(changed, other)
        assert not is_same_table(other.getvalue(), files[TABLE])
    assert not is_same_table(files[TABLE][:-20], files[TABLE])
    assert not is_same_table(b"", files[TABLE])


def test_the_card_tells_the_hub_what_it_is(files):
    card = files[CARD].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["size_categories"]) == ("apache-2.0", ["n<1K"])
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": TABLE}]
    assert 'load_dataset("me/super-weights", split="train")' in card
    assert all(f"`{column}`" in card for column in COLUMNS)
    assert all(f"[`{family}`](catalog/{family}.json)" in card for family in DOCUMENTS)
    assert max(len(line) for line in card.splitlines() if not line.startswith(("|", "<!--"))) <= 120


def test_the_card_counts(files):
    rows = rows_in(files)
    lines = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in files[CARD].decode().splitlines()[25:38]
             if line.startswith("| `")}  # fmt: skip
    for standing in ("reported", "disputed", "none_reported"):
        assert lines[f"`{standing}`"] == str(sum(row["standing"] == standing for row in rows))
    assert lines["`verified`"] == str(sum(row["status"] == "confirmed" for row in rows))
    assert summary_of(DOCUMENTS) == f"{len(DOCUMENTS)} families, 1 verified entry, 139 reported"


def test_hostile_names_are_only_text():
    source = {"name": HOSTILE, "kind": "code", "url": 'https://example.org/a)b"c|d<e>[f](g`h', "note": None}
    item = {**REPORTED, "model": HOSTILE, "sources": [source]}
    card = card_of(document(entries=[entry(HOSTILE, note=HOSTILE)], reported=[item]), "me/x").decode()
    body = card.split("---\n", 2)[2].partition("-->\n")[2]
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    tokens = [child for token in parser.parse(body) for child in (token, *(token.children or ()))]
    links = {token.attrGet("href") for token in tokens if token.type == "link_open"}
    assert {link for link in links if "evil" in link or not link.startswith(("https://arxiv.org", "catalog"))} == {
        "https://example.org/a%29b%22c%7Cd%3Ce%3E%5Bf%5D%28g%60h"
    }
    assert not [token for token in tokens if token.type in ("image", "html_inline", "html_block", "strong_open")]
    shown = [token.content for token in tokens if token.type == "inline" and "evil" in token.content]
    assert len(shown) == 3
    rendered = ["".join(child.content for child in token.children) for token in tokens
                if token.type == "inline" and "evil" in token.content]  # fmt: skip
    assert set(rendered) == {HOSTILE}
    assert "www.evil" not in card  # which GitHub's dialect would make a link of
    assert "me@evil" not in card


def test_a_card_knows_whether_somebody_changed_it(files):
    assert is_own_card(files[CARD])
    assert is_own_card(card_of(document(), "you/other"))
    assert not is_own_card(files[CARD] + b"\nMy own words.\n")
    assert not is_own_card(files[CARD].replace(b"license: apache-2.0", b"license: mit"))
    assert not is_own_card(b"---\nlicense: mit\n---\n")


def test_what_must_not_be_lost():
    other = {**REPORTED, "sources": [*REPORTED["sources"], {**REPORTED["sources"][0], "name": "B"}]}
    old, new = (keys_of(document(entries=[entry()], reported=[item])) for item in (other, REPORTED))
    assert [name for key, name in old.items() if key not in new] == ["the source B of me/model-1b 1,2,3"]
    assert list(new.values()) == [
        "the entry of me/model-1b@" + "a" * 12,
        "the super weight 1,2,3 of me/model-1b@" + "a" * 12,
        "what is reported of me/model-1b 1,2,3",
        "the source A paper of me/model-1b 1,2,3",
    ]


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"super_weights": []}, ["the super weight 1,2,3 of", "the coincident weight 1,2,5 of"]),
        ({"note": None}, ["the note on"]),
        ({"note": "Another."}, ["the note on"]),
        ({"verdict": "none"}, []),
        ({"commit": "b" * 40}, ["the entry of"]),  # and not in addition what it consists of
        ({"method": {**entry()["method"], "dtype": "float16"}}, ["the entry of"]),
    ],
)
def test_parts_of_an_entry_must_not_be_lost_either(changes, lost):
    weight = entry()["super_weights"][0]
    had = {
        "note": "A note.",
        "super_weights": [weight, {**weight, "col": 5, "status": "coincident", "effect": "inert"}],
    }
    old, new = document(entries=[entry(**had)]), document(entries=[entry(**{**had, **changes})])
    assert lost_between(old, new) == [f"{name} me/model-1b@{'a' * 12}" for name in lost]
    assert lost_between(document(), new) == []


def test_a_sources_note_must_not_be_lost_either():
    def of(note):
        return document(reported=[{**REPORTED, "sources": [{**REPORTED["sources"][0], "note": note}]}])

    assert lost_between(of("ppl 5 -> 8000"), of(None)) == ["the note of A paper on me/model-1b 1,2,3"]
    assert lost_between(of("ppl 5 -> 8000"), of("Another.")) == lost_between(of("ppl 5 -> 8000"), of(None))
    assert lost_between(of(None), of("ppl 5 -> 8000")) == []
    other = {**REPORTED, "sources": [{**REPORTED["sources"][0], "name": "B"}]}
    assert lost_between(of("x"), document(reported=[other])) == ["the source A paper of me/model-1b 1,2,3"]
    assert lost_between(of("x"), document()) == ["what is reported of me/model-1b 1,2,3"]


def survey_table(*rows):
    """Return a survey's table of these models, each at a commit, and failed or not."""
    names = ("model", "commit", "do", "failure")
    data = io.BytesIO()
    pq.write_table(pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)}), data)
    return data.getvalue()


def test_of_a_surveys_table_what_was_found_must_not_be_lost():
    one, two = ("me/a", "abc", "scan", None), ("me/a", "abd", "scan", None)
    away = ("me/b", None, "pin", "network")
    assert lost_rows(survey_table(one, away), survey_table(one, two)) is None  # what failed is done, or given up
    assert lost_rows(survey_table(one, two), survey_table(one, away)) == "me/a abd scan"
    assert lost_rows(survey_table(one), survey_table(("me/a", "abc", "scan", "timeout"))) == "me/a abc scan"
    for broken in (b"", b"PAR1", b"{}"):
        assert lost_rows(broken, survey_table(one)) == "a file that is no such table"
