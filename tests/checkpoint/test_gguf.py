"""The gguf library is the oracle: what it writes must be read alike, and nothing else may come out of hostile bytes."""

import struct
import tracemalloc
from itertools import pairwise

import gguf
import numpy as np
import pytest
from gguf_files import header_bytes, random_blocks, read_by_the_library, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.base.errors import HeaderError
from analyzer.checkpoint.gguf import FIRST_READ, MOST_READ, gguf_config, read_gguf_header

KINDS = [kind.name for kind in gguf.GGMLQuantizationType]
INTEGERS = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


def reader(data, asked=None):
    def read(start, stop):
        assert 0 <= start <= stop <= len(data)
        if asked is not None:
            asked.append((start, stop))
        return bytes(data[start:stop])

    return read


def parse(data, asked=None):
    return read_gguf_header(reader(data, asked), len(data))


def refused(data):
    with pytest.raises(HeaderError) as caught:
        parse(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


# A file by hand, as the format's description has it


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def info(name="a", dims=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def to_file(*infos, pairs=(ARCHITECTURE,), data_bytes=16, version=3, counts=None, magic=b"GGUF", alignment=32):
    tensors, keys = counts or (len(infos), len(pairs))
    header = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs) + b"".join(infos)
    return header + bytes(-len(header) % alignment) + bytes(data_bytes)


def test_the_smallest_file():
    file = to_file(info("a", (3, 2)), data_bytes=24)
    header = parse(file)
    record = header.tensors["a"]
    assert header.metadata == {"general.architecture": "llama"}
    assert (record.name, record.dtype, record.shape) == ("a", "F32", (2, 3))  # the file has them the other way round
    assert (record.start, record.stop) == (len(file) - 24, len(file))
    assert parse(to_file(info("a", (3, 2)), data_bytes=24, version=2)).tensors == header.tensors


def test_what_the_library_writes_is_read_as_the_library_reads_it(tmp_path):
    tensors = {}
    for number, kind in enumerate(KINDS):
        if kind in INTEGERS:
            tensors[f"t.{kind}"] = (kind, np.ones((2, 5), INTEGERS[kind]))
        else:
            tensors[f"t.{kind}"] = (kind, random_blocks(kind, *((3, 2, 256), (4, 512))[number % 2], seed=number))
    metadata = {
        "llama.block_count": 7,
        "tokenizer.ggml.tokens": [f"token {n} é" for n in range(5000)],
        "tokenizer.ggml.scores": [n / 8 for n in range(5000)],
        "llama.feed_forward_length": [1, 2, 3],
        "tokenizer.chat_template": "x" * 100_000,
        "general.name": "née",
        "general.alignment": 64,
    }
    write_gguf(tmp_path / "all.gguf", tensors, metadata=metadata)
    data = (tmp_path / "all.gguf").read_bytes()
    header = parse(data)
    expected = read_by_the_library(tmp_path / "all.gguf")
    assert header.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        record = header.tensors[name]
        kind = tensor.tensor_type.name
        assert record.dtype == (kind if kind in {"F64", "F32", "F16", "BF16", *INTEGERS} else f"GGML_{kind}")
        assert record.shape == tuple(reversed(tensor.shape.tolist()))
        assert (record.start, record.stop) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        assert data[record.start : record.stop] == tensor.data.tobytes()
    kept = {key: value for key, value in header.metadata.items() if value is not None}
    assert kept == {
        "general.architecture": "llama", "llama.block_count": 7, "llama.feed_forward_length": [1, 2, 3],
        "general.name": "née", "general.alignment": 64,
    }  # fmt: skip
    assert header.metadata.keys() - kept.keys() == {  # what is large is passed over
        "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.chat_template"
    }  # fmt: skip


def test_values_of_every_type():
    values = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -300), 4: ("I", 1 << 31), 5: ("i", -5),
              6: ("f", 0.5), 7: ("?", True), 10: ("Q", 1 << 63), 11: ("q", -(1 << 40)), 12: ("d", 0.1)}  # fmt: skip
    pairs = [pair(f"k{kind}", kind, struct.pack("<" + form, value)) for kind, (form, value) in values.items()]
    arrays = [
        pair(f"a{kind}", 9, struct.pack(f"<IQ3{form}", kind, 3, *[value] * 3)) for kind, (form, value) in values.items()
    ]
    metadata = parse(to_file(pairs=[*pairs, *arrays, pair("empty", 9, struct.pack("<IQ", 8, 0))])).metadata
    for kind, (_, value) in values.items():
        assert metadata[f"k{kind}"] == value
        assert metadata[f"a{kind}"] == [value] * 3


def test_a_large_vocabulary_is_read_in_few_reads_and_never_held():
    words = b"".join(text(f"word number {n} of many") for n in range(250_000))
    vocabulary = pair("tokens", 9, struct.pack("<IQ", 8, 250_000) + words)
    scores = pair("scores", 9, struct.pack("<IQ", 6, 3_000_000) + bytes(12_000_000))
    file = to_file(info(), pairs=[ARCHITECTURE, scores, vocabulary], data_bytes=5_000_000)
    header_stop = len(file) - 5_000_000
    asked = []
    tracemalloc.start()
    header = parse(file, asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.tensors["a"].shape == (4,)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(asked))  # nothing is read twice
    read = sum(stop - start for start, stop in asked)
    assert len(words) < read < len(words) + FIRST_READ + header_stop / 2  # no scores
    assert len(asked) <= 6
    assert peak < 3 * MOST_READ


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "is no GGUF file: it begins with b''"),
        (b"GG", "is no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no GGUF file: it begins with b'vers'"),
        (to_file(magic=b"lmgg"), "older than GGUF"),
        (to_file(magic=b"tjgg"), "older than GGUF"),
        (b"GGUF", "truncated"),
        (to_file()[:20], "truncated"),
        (to_file(version=1), "version 1; versions 2 and 3 can be read"),
        (to_file(version=4), "version 4"),
        (to_file(version=0), "version 0"),
        (to_file(version=0x03000000), "big-endian"),
        # counts and lengths
        (to_file(counts=(1 << 63, 0)), "too many to be true"),
        (to_file(counts=(0, 1 << 40)), "too many to be true"),
        (to_file(counts=(1, 1), data_bytes=0, alignment=1), "truncated: its header goes on past"),
        (to_file(pairs=[struct.pack("<Q", 1 << 62) + b"general"]), "a name of 4611686018427387904 bytes"),
        (to_file(pairs=[struct.pack("<Q", 60000) + b"general"]), "truncated"),
        (to_file(pairs=[text(b"\xff\xfe") + struct.pack("<IB", 0, 1)]), "not UTF-8"),
        (to_file(pairs=[pair("k", 8, struct.pack("<Q", 1 << 63))]), "truncated"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQ", 4, 1 << 63))]), "truncated"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQ", 8, 1 << 63))]), "truncated"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQQ", 8, 2, 1 << 63))]), "truncated"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQQ", 8, 1, 1 << 63))]), "truncated"),
        # types
        (to_file(pairs=[pair("k\x1b", 13, b"")]), "the key k\\x1b of the type 13, which cannot"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQ", 9, 1))]), "the key k of the type array of 9"),
        (to_file(pairs=[pair("k", 9, struct.pack("<IQ", 77, 1))]), "of the type array of 77"),
        (to_file(pairs=[ARCHITECTURE, ARCHITECTURE]), "the key general.architecture twice"),
        (to_file(info(), info()), "the tensor a twice"),
        # tensors
        (to_file(info(dims=(1,) * 5)), "has 5 dimensions; the format allows 4"),
        (to_file(text("a") + struct.pack("<I", 1 << 31)), "2147483648 dimensions"),
        (to_file(info(dims=(1 << 63, 1 << 63, 1 << 63, 1 << 63))), "is truncated: tensor a ends"),
        (to_file(info(dims=(33,), kind=2), data_bytes=99), "does not fill blocks of 32 (GGML_Q4_0)"),
        (to_file(info(dims=(), kind=2)), "does not fill blocks of 32"),
        (to_file(info(offset=16)), "has the offset 16, no multiple of 32"),
        (to_file(info(offset=32)), "is truncated: tensor a ends"),
        (to_file(info(offset=1 << 63)), "is truncated: tensor a ends"),
        (to_file(info(kind=31, offset=1 << 63)), "is truncated: tensor a ends"),
        (to_file(info(), data_bytes=15), "is truncated: tensor a ends"),
        (to_file(info("a"), info("b"), data_bytes=32), "tensor a ends at byte"),
        (to_file(info("a", (9,)), info("b", offset=32), data_bytes=64), "where the next one has begun"),
        # alignment
        *[(to_file(info(), pairs=[ARCHITECTURE, pair("general.alignment", kind, value)]), "no power of two")
          for kind, value in [(4, struct.pack("<I", 0)), (4, struct.pack("<I", 24)), (5, struct.pack("<i", -32)),
                              (6, struct.pack("<f", 32)), (7, b"\1"), (8, text("32"))]],
        (to_file(info(), pairs=[ARCHITECTURE, pair("general.alignment", 10, struct.pack("<Q", 1 << 63))]), "truncated"),
    ],
)  # fmt: skip
def test_hostile_headers(file, said):
    assert said in refused(file)


def test_a_header_that_never_ends(monkeypatch):
    monkeypatch.setattr("analyzer.checkpoint.gguf.MAX_HEADER_BYTES", 5000)
    words = struct.pack("<IQ", 8, 1000) + 1000 * text("word")
    assert "more than 5000 bytes, too long to be true" in refused(to_file(pairs=[pair("k", 9, words)]))
    numbers = struct.pack("<IQ", 0, 6000) + bytes(6000)
    assert "more than 5000 bytes" in refused(to_file(pairs=[pair("k", 9, numbers)]))


def test_tensors_of_a_type_that_nobody_knows_end_where_the_next_begins():
    file = to_file(info("b", (5,), 99, 32), info("c", (4,), 0, 96), info("a", (4,), 0, 0), data_bytes=112)
    records = parse(file).tensors
    start = records["a"].start
    assert [(r.name, r.dtype, r.start - start, r.stop - start) for r in records.values()] == [
        ("a", "F32", 0, 16), ("b", "GGML_99", 32, 96), ("c", "F32", 96, 112)
    ]  # fmt: skip


def test_big_endian_files_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "b.gguf", {"a": ("F32", random_blocks("F32", 2, 4))}, endianess=gguf.GGUFEndian.BIG)
    assert "is big-endian, which cannot be read" in refused((tmp_path / "b.gguf").read_bytes())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "small.gguf"
    tensors = {
        f"blk.{n}.ffn_down.weight": (kind, random_blocks(kind, 2, 256)) for n, kind in enumerate(("Q4_K", "F16"))
    }
    metadata = {"llama.block_count": 2, "tokenizer.ggml.tokens": ["a", "bc", ""], "llama.widths": [1, 2]}
    write_gguf(path, tensors, metadata=metadata)
    return path.read_bytes()


@settings(max_examples=500)
@given(edits=st.lists(st.tuples(st.integers(0, 420), st.binary(min_size=1, max_size=8)), max_size=3), cut=st.data())
def test_any_bytes_give_records_inside_of_the_file_or_one_line(small, edits, cut):
    data = bytearray(small)
    for at, new in edits:
        data[at : at + len(new)] = new
    if cut.draw(st.booleans()):
        del data[cut.draw(st.integers(0, len(data))) :]
    try:
        header = parse(data)
    except HeaderError as error:
        assert "\n" not in str(error)
        return
    stop = 0
    for record in header.tensors.values():
        assert stop <= record.start <= record.stop <= len(data)
        stop = record.stop
    if data == small:
        assert len(header.tensors) == 2


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["F32", "F16", "Q8_0", "Q6_K", "IQ2_S", "TQ1_0"]), min_size=1, max_size=4),
    numbers=st.dictionaries(NAMES, st.integers(0, 2**32 - 1), max_size=5),
    texts=st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=5), max_size=5),
)
def test_whatever_the_library_writes_is_read(tmp_path_factory, kinds, numbers, texts):
    path = tmp_path_factory.mktemp("written") / "any.gguf"
    metadata = {f"n.{key}": value for key, value in numbers.items()}
    metadata |= {f"t.{key}": value for key, value in texts.items()}
    write_gguf(path, {f"é {n}": (kind, random_blocks(kind, 3, 256)) for n, kind in enumerate(kinds)}, metadata=metadata)
    header = parse(path.read_bytes())
    expected = read_by_the_library(path)
    assert {name: (r.start, r.stop) for name, r in header.tensors.items()} == {
        name: (t.data_offset, t.data_offset + t.n_bytes) for name, t in expected.items()
    }
    assert {key: value for key, value in header.metadata.items() if key.startswith("n.")} == {
        f"n.{key}": value for key, value in numbers.items()
    }
    assert {key for key, value in header.metadata.items() if value is None} == {f"t.{key}" for key in texts}


# What stands for config.json


def test_metadata_under_the_names_of_config_json():
    metadata = {
        "general.architecture": "glm4moe", "glm4moe.block_count": 47, "glm4moe.nextn_predict_layers": 1,
        "glm4moe.embedding_length": 4096, "glm4moe.feed_forward_length": 10944,
        "glm4moe.expert_feed_forward_length": 1408, "glm4moe.expert_count": 128, "llama.block_count": 9,
    }  # fmt: skip
    assert gguf_config(metadata) == {
        "model_type": "glm4moe", "format": "gguf", "num_hidden_layers": 46, "num_nextn_predict_layers": 1,
        "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_experts": 128,
    }  # fmt: skip


def test_sizes_of_what_goes_before_a_language_model():
    metadata = {
        "general.architecture": "clip", "clip.vision.block_count": 27, "clip.vision.embedding_length": 1152,
        "clip.audio.embedding_length": 1280,
    }  # fmt: skip
    assert gguf_config(metadata) == {
        "model_type": "clip", "format": "gguf", "audio_config": {"hidden_size": 1280},
        "vision_config": {"num_hidden_layers": 27, "hidden_size": 1152},
    }  # fmt: skip


@pytest.mark.parametrize("value", [[8, 16], 0, -4, 1.5, True, "8", None])
def test_sizes_that_are_none(value):
    metadata = {"general.architecture": "openelm", "openelm.feed_forward_length": value}
    assert gguf_config(metadata) == {"model_type": "openelm", "format": "gguf"}


@pytest.mark.parametrize("value", [None, "", 7])
def test_no_architecture(value):
    with pytest.raises(HeaderError, match=r"names no general\.architecture"):
        gguf_config({"general.architecture": value})


def test_files_cut_anywhere(small):
    for stop in range(0, len(small), 7):
        assert refused(small[:stop]).startswith("is ")


def test_the_header_ends_where_the_library_says(tmp_path, small):
    (tmp_path / "x.gguf").write_bytes(small)
    records = parse(small).tensors
    assert min(record.start for record in records.values()) == header_bytes(tmp_path / "x.gguf")
