"""Data sets of the Hub, from a server that speaks its protocol: rows, commits, the cache, refusals; and files."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pytest
from models import hooked, random_llama, save
from pyarrow import parquet
from tiny_text import WORDS

from analyzer.base.errors import ForwardError, SourceError
from analyzer.experiments.data.contexts import contexts_of, read_passages
from analyzer.experiments.data.datasets import C4, LAMBADA, WIKITEXT2
from analyzer.experiments.data.texts import read_text, windows_of

RAW = Path(__file__).parents[4] / "shared" / "data" / "wikitext2-raw-test.txt"
ROWS = ["", " = apple = \n", "", "banana cherry\n"]


def publish(hub, tmp_path, wanted, rows):
    """Put rows into a data set as the real one has them, and return the commit."""
    path = tmp_path / "set" / wanted.repository / wanted.file
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": rows}), path)
    else:
        lines = "".join(json.dumps({"url": "x", "text": row}) + "\n" for row in rows)
        path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return hub.add(f"datasets/{wanted.repository}", tmp_path / "set" / wanted.repository)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return hooked(save(random_llama(), tmp_path_factory.mktemp("tokens") / "m")).tokens


def test_wikitext_is_its_rows_joined_at_the_commit_that_the_hub_names(hub, tmp_path):
    commit = publish(hub, tmp_path, WIKITEXT2, ROWS)
    text = read_text("wikitext2", token=None)
    assert text.rows.texts == ("\n\n".join(ROWS),)
    assert text.facts == {
        "data": "wikitext2",
        "repository": "Salesforce/wikitext",
        "file": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        "commit": commit,
    }


def test_what_is_in_the_cache_is_not_downloaded_again(hub, tmp_path, monkeypatch):
    publish(hub, tmp_path, WIKITEXT2, ROWS)
    first = read_text("wikitext2", token=None)
    hub.forget()
    assert read_text("wikitext2", token=None) == first
    assert not hub.asked("cdn")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_text("wikitext2", token=None) == first


@pytest.mark.skipif(not RAW.exists(), reason="the measuring data are not here")
def test_wikitext_joined_has_the_length_that_is_known():
    lines = RAW.read_text("utf-8").split("\n")[:-1]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    assert len("\n\n".join(rows)) == 1_294_336


def test_c4_is_drawn_as_gptq_draws_it(hub, tmp_path, tokens):
    words = random.Random(1)
    documents = [" ".join(words.choices(WORDS, k=number)) for number in (3, 30, 8, 14, 40, 5)]
    publish(hub, tmp_path, C4, documents)
    found, length = windows_of(read_text("c4", token=None), tokens, most=20, length=9, bos=False)
    generator, expected = random.Random(0), []
    while len(expected) < 20:  # datautils.get_c4 of IST-DASLab/gptq
        while True:
            ids = tokens.ids(documents[generator.randint(0, len(documents) - 1)])
            if len(ids) >= 9:
                break
        start = generator.randint(0, len(ids) - 9 - 1)
        expected.append(tuple(ids[start : start + 9]))
    assert [window.ids for window in found] == expected
    assert length == 9
    assert len(windows_of(read_text("c4", token=None), tokens, most=None, length=9, bos=False)[0]) == 256


def test_documents_that_are_all_too_short_are_told(hub, tmp_path, tokens):
    publish(hub, tmp_path, C4, ["apple banana"])
    with pytest.raises(ForwardError, match="c4 is too short for a window of 9 tokens"):
        windows_of(read_text("c4", token=None), tokens, most=None, length=9, bos=False)


def test_lambada_is_passages_without_their_last_word(hub, tmp_path, tokens):
    commit = publish(hub, tmp_path, LAMBADA, ["apple banana cherry", "date elder fig\ngrape", "kiwi lemon"])
    passages = read_passages("lambada", token=None)
    assert passages.facts["commit"] == commit
    assert contexts_of(passages, tokens, most=2) == [(1, 2), (4, 5)]


def test_a_data_set_that_cannot_be_had_is_one_line(hub):
    with pytest.raises(SourceError, match=r"Salesforce/wikitext cannot be had: .*; or give a file \(--data FILE\)"):
        read_text("wikitext2", token=None)
    hub.tamper = lambda _request, reply: type(reply)(403, {}, b"")
    with pytest.raises(SourceError, match=r"lambada_openai cannot be had: [^\n]*$"):
        read_passages("lambada", token=None)


def test_a_file_is_taken_as_it_is_or_by_its_lines_of_json(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo  ")
    (tmp_path / "a.jsonl").write_text('{"text": "one two", "n": 1}\n{"text": "three four\\nfive"}\n')
    assert read_text(str(tmp_path / "a.txt"), token=None).rows.texts == ("one\n\ntwo  ",)
    assert read_text(str(tmp_path / "a.jsonl"), token=None).rows.texts == ("one two\n\nthree four\nfive",)
    assert read_passages(str(tmp_path / "a.txt"), token=None).rows.texts == ("one", "two  ")
    assert read_passages(str(tmp_path / "a.jsonl"), token=None).rows.texts == ("one two", "three four\nfive")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe\xff", "as UTF-8 text"),
        ("a.jsonl", b"no json\n", "a `text` a row"),
        ("a.jsonl", b'{"other": 1}\n', "has no `text`"),
        ("a.jsonl", b'{"text": 5}\n', "a `text` a row"),
        ("a.jsonl", b"", "a `text` a row"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said) as raised:
        read_text(str(tmp_path / name), token=None)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SourceError, match=r"cannot read .*nowhere.txt"):
        read_text(str(tmp_path / "nowhere.txt"), token=None)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SourceError, match="has no passage"):
        read_passages(str(tmp_path / "empty.txt"), token=None)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(WORDS[:10]))
    return read_text(str(tmp_path / "a.txt"), token=None)


def test_windows_follow_each_other_and_the_rest_is_dropped(text, tokens):
    found, length = windows_of(text, tokens, most=None, length=4, bos=False)
    assert [window.ids for window in found] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert found[0].targets == (2, 3, 4)
    assert length == 4
    assert len(windows_of(text, tokens, most=1, length=4, bos=False)[0]) == 1
    assert windows_of(text, tokens, most=None, length=10, bos=False)[0][0].ids == tuple(range(1, 11))


def test_a_bos_token_begins_each_window_and_counts(text, tokens):
    found, _ = windows_of(text, tokens, most=None, length=4, bos=True)
    assert [window.ids for window in found] == [(18, 1, 2, 3), (18, 4, 5, 6), (18, 7, 8, 9)]
    assert found[0].targets == (1, 2, 3)


def test_windows_that_do_not_fit_are_told(text, tokens):
    with pytest.raises(ForwardError, match=r"a\.txt is too short for a window of 11 tokens"):
        windows_of(text, tokens, most=None, length=11, bos=False)
    with pytest.raises(ForwardError, match=r"64 positions: a window cannot take 65 \(--length\)"):
        windows_of(text, tokens, most=None, length=65, bos=False)
    with pytest.raises(ForwardError, match="window of 64 tokens"):  # as many as the model has positions
        windows_of(text, tokens, most=None, length=None, bos=False)
