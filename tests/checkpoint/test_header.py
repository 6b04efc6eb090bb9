"""The safetensors library is the oracle: what it writes must parse, what it refuses must not."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from analyzer.base.errors import HeaderError
from analyzer.checkpoint.header import DTYPE_BITS, header_length, parse_header

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
ARRAY_DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint16, np.int8, np.bool_]


def to_file(header, data_bytes=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def parse(file):
    length = header_length(file[:8], len(file))
    return parse_header(file[8 : 8 + length], len(file))


def entry(**changes):
    return {"a": ONE["a"] | changes}


def two(*offsets):
    """Return the header of two byte tensors, a and b, that have these offsets."""
    return {
        name: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}
        for name, (a, b) in zip("ab", offsets, strict=True)
    }


def test_the_smallest_file():
    record = parse(to_file(ONE))["a"]
    start = 8 + len(json.dumps(ONE))
    assert (record.name, record.dtype, record.shape) == ("a", "F32", (2,))
    assert (record.start, record.stop) == (start, start + 8)


@pytest.mark.parametrize(
    ("header", "data_bytes", "fault"),
    [
        # not JSON, or not the JSON that the format means
        (b"", 8, "header of 0 bytes"),
        (b"[]", 8, "does not start with '{'"),
        (b' {"a":1}', 8, "does not start with '{'"),
        (b"\xef\xbb\xbf{}", 8, "does not start with '{'"),
        (b"{}}", 0, "not JSON"),
        (b"{}\x00", 0, "not JSON"),
        (b'{"a"', 8, "not JSON"),
        (b'{"\xff":1}', 8, "not JSON"),
        (b'{"\\ud800":' + json.dumps(ONE["a"]).encode() + b"}", 8, "not JSON"),
        (b'{"__metadata__":{"x":"\\udfff"}}', 0, "not JSON"),
        (b'{"a":' + b"[" * 100_000, 8, "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", 8, "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8, "NaN"),
        (b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', 8, "not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', 8, "not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', 8, "not [start, stop]"),
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', 8, "not a list of sizes"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1e999}}', 8, "1e999"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":-1e999}}', 8, "-1e999"),
        (json.dumps(ONE).encode()[:-1] + b"," + json.dumps(ONE).encode()[1:], 8, "the key a twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "the key dtype twice"),
        # metadata
        ({"__metadata__": {"x": 1}, **ONE}, 8, "__metadata__"),
        ({"__metadata__": ["x"], **ONE}, 8, "__metadata__"),
        ({"__metadata__": {"x": None}, **ONE}, 8, "__metadata__"),
        ({"__metadata__": 0, **ONE}, 8, "__metadata__"),
        ({"__metadata__": "", **ONE}, 8, "__metadata__"),
        ({"__metadata__": False, **ONE}, 8, "__metadata__"),
        # entries
        ({"a": None}, 8, "tensor a must have"),
        ({"a": [["F32"], [2], [0, 8]]}, 8, "tensor a must have"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor a must have"),
        (entry(dtype="F33"), 8, "unknown dtype F33"),
        (entry(dtype="f32"), 8, "unknown dtype f32"),
        (entry(dtype=None), 8, "unknown dtype None"),
        (entry(dtype=["F32"]), 8, "unknown dtype"),
        (entry(shape=2), 8, "not a list of sizes"),
        (entry(shape=["2"]), 8, "not a list of sizes"),
        (entry(shape=[True, 2]), 8, "not a list of sizes"),
        (entry(shape=[2**64]), 8, "not a list of sizes"),
        (entry(data_offsets=[0]), 8, "not [start, stop]"),
        (entry(data_offsets=[0, 8, 8]), 8, "not [start, stop]"),
        (entry(data_offsets=[8, 0]), 8, "not [start, stop]"),
        (entry(data_offsets={"0": 0, "8": 8}), 8, "not [start, stop]"),
        (entry(data_offsets=[False, 8]), 8, "not [start, stop]"),
        # shape against offsets
        (entry(shape=[3]), 8, "does not fill its 8 bytes"),
        (entry(shape=[]), 8, "does not fill its 8 bytes"),
        (entry(shape=[0]), 8, "does not fill its 8 bytes"),
        (entry(dtype="F16"), 8, "does not fill its 8 bytes"),
        (entry(dtype="F4", shape=[15]), 8, "does not fill its 8 bytes"),
        (entry(shape=[2**32, 2**32, 2]), 8, "does not fill its 8 bytes"),
        (entry(shape=[2**63] * 100_000), 8, "does not fill its 8 bytes"),  # no number of megabytes
        (entry(shape=[2**64 - 1, 2**64 - 1, 0], data_offsets=[0, 0]), 0, "does not fill its 0 bytes"),  # overflow first
        (entry(shape=[2**32, 2**32, 0], data_offsets=[0, 0]), 0, "does not fill its 0 bytes"),
        # offsets against each other and the file
        (two((0, 4), (5, 8)), 8, "tensor b leaves a hole before it"),
        (two((0, 5), (4, 8)), 8, "tensor b overlaps the one before it"),
        (two((0, 8), (0, 8)), 8, "tensor b overlaps the one before it"),
        (two((0, 8), (2, 4)), 8, "tensor b overlaps the one before it"),
        (entry(data_offsets=[1, 9]), 9, "tensor a leaves a hole before it"),
        (ONE, 7, "is truncated"),
        (ONE, 0, "is truncated"),
        (ONE, 9, "has bytes that no tensor covers"),
        ({}, 1, "has bytes that no tensor covers"),
        (entry(data_offsets=[2**64 - 9, 2**64 - 1]), 8, "leaves a hole"),
    ],
)  # fmt: skip
def test_hostile_headers(header, data_bytes, fault):
    with pytest.raises(HeaderError) as caught:
        parse(to_file(header, data_bytes))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_cannot_write_to_the_terminal():
    with pytest.raises(HeaderError) as caught:
        parse(to_file({"\x1b[2J\nx\u202e": ONE["a"] | {"dtype": "\x07"}}))
    assert "tensor \\x1b[2J\\nx\\u202e has the unknown dtype \\x07" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "file_size", "fault"),
    [
        (b"", 0, "0 bytes long"),
        (b"\x02\0\0\0\0\0\0", 7, "7 bytes long"),
        ((1).to_bytes(8, "little"), 100, "header of 1 bytes"),
        ((93).to_bytes(8, "little"), 100, "header of 93 bytes in a file of 100"),
        ((100_000_001).to_bytes(8, "little"), 2**40, "the format allows 100000000"),
        (b"\xff" * 8, 100, "the format allows 100000000"),
        (b"PK\x03\x04\x14\0\0\0", 10**6, "the format allows 100000000"),  # a zip: what torch.save writes
    ],
)
def test_hostile_lengths(first, file_size, fault):
    with pytest.raises(HeaderError, match=fault):
        header_length(first, file_size)


def test_lengths_up_to_the_limits():
    assert header_length((92).to_bytes(8, "little"), 100) == 92
    assert header_length((100_000_000).to_bytes(8, "little"), 2**40) == 100_000_000
    assert header_length((2).to_bytes(8, "little") + b"more", 100) == 2


@pytest.mark.parametrize("header", [b"{}", b"{} \n\t\r ", b'{"__metadata__":{}}', b'{"__metadata__":null}'])
def test_files_without_tensors(header):
    assert parse(to_file(header, 0)) == {}


EXTRAS = [0, 1, -1, -0.0, 1.5, 1e300, "x", None, True, [], [1, [-2, "a"]], {}, {"shape": [3]}]


@pytest.mark.parametrize("extra", EXTRAS, ids=repr)
def test_what_else_an_entry_says_is_passed_over(extra):
    # The library reads such files; so does it one whose metadata is null.
    file = to_file({"__metadata__": None, **entry(more=extra)})
    assert parse(file)["a"].shape == (2,)
    assert dict(safetensors.deserialize(file))["a"]["shape"] == [2]


def test_every_dtype_of_the_library_has_its_width():
    # The library refuses a shape that does not fill the bytes, so each width is checked against its own.
    for dtype, bits in DTYPE_BITS.items():
        file = to_file({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}, bits)
        assert parse(file)["a"].shape == (8,)
        try:
            safetensors.deserialize(file)
        except safetensors.SafetensorError as error:
            # Older versions of the library lack the newest dtypes.
            assert "unknown variant" in str(error), dtype


def test_records_come_in_the_order_of_their_offsets():
    header = {
        "late": {"dtype": "U8", "shape": [3], "data_offsets": [5, 8]},
        "empty": {"dtype": "F32", "shape": [7, 0], "data_offsets": [5, 5]},
        "early": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]},
    }
    assert list(parse(to_file(header))) == ["early", "empty", "late"]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
ARRAYS = st.builds(
    lambda dtype, shape: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
    st.sampled_from(ARRAY_DTYPES),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
)


# Without tensors and with empty metadata the library writes a header that it refuses to read.
METADATA = st.none() | st.dictionaries(NAMES, NAMES, min_size=1, max_size=2)


@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=5), metadata=METADATA)
def test_files_of_the_library_parse_identically(tensors, metadata):
    file = save(tensors, metadata)
    expected = {name: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for name, v in safetensors.deserialize(file)}
    got = {r.name: (r.dtype, r.shape, file[r.start : r.stop]) for r in parse(file).values()}
    assert got == expected
    assert {name: array.shape for name, array in tensors.items()} == {name: r.shape for name, r in parse(file).items()}


def assert_not_more_lenient_than_the_library(file):
    try:
        ours = parse(file)
    except HeaderError:
        return
    theirs = {name: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for name, v in safetensors.deserialize(file)}
    assert {r.name: (r.dtype, r.shape, file[r.start : r.stop]) for r in ours.values()} == theirs


TWO = save({"w": np.arange(6, dtype=np.float16), "empty": np.zeros((0, 4), np.float32), "b": np.ones(1)}, {"k": "v"})
TOKENS = [b"-", b"-0", b"0", b"7", b"00", b".5", b"e1", b"NaN", b"null", b"true", b"[", b"]", b"{", b"}", b'"', b",",
          b":", b"\\", b"\\ud800", b"\\u0061", b" ", b"\t", b"\x00", b"\x7f", b"\xc3\xa9", b"\xff", b"F16", b"BF16",
          b"18446744073709551615", b"18446744073709551616", b"__metadata__", b"k"]  # fmt: skip
EDITS = st.tuples(st.integers(0, len(TWO)), st.integers(0, 3), st.sampled_from(TOKENS) | st.binary(max_size=2))


@settings(max_examples=200)
@given(edits=st.lists(EDITS, min_size=1, max_size=2), keep_length=st.booleans())
@example(edits=[(TWO.index(b'"w"') + 1, 1, b"\\ud800")], keep_length=False)
def test_mutated_headers(edits, keep_length):
    length = int.from_bytes(TWO[:8], "little")
    header, data = TWO[8 : 8 + length], TWO[8 + length :]
    for place, removed, token in edits:
        header = header[:place] + token + header[place + removed :]
    prefix = TWO[:8] if keep_length else len(header).to_bytes(8, "little")
    assert_not_more_lenient_than_the_library(prefix + header + data)


SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 2**32, 2**63, 2**64 - 1, 2**64, True, -1, None, "2"])
CHANGES = st.tuples(st.sampled_from(["shape", "data_offsets"]), st.integers(0, 1), SIZES)


@st.composite
def headers(draw):
    """Lay tensors out one after the other, as the format wants it; then, mostly, change one number of one of them."""
    header, stop = {}, 0
    for name in draw(st.permutations(["a", "b", "c"])):
        dtype, shape = draw(st.sampled_from(list(DTYPE_BITS))), draw(st.lists(st.sampled_from([0, 1, 4]), max_size=3))
        start, stop = stop, stop + int(np.prod(shape, dtype=int)) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    if change := draw(st.none() | CHANGES):
        field, place, value = change
        header[name][field][place : place + 1] = [value]
    if extra := draw(st.none() | st.sampled_from(EXTRAS)):
        header["a"]["more"] = extra
    return header, stop


@settings(max_examples=200)
@given(headers())
def test_made_up_headers(made):
    assert_not_more_lenient_than_the_library(to_file(*made))


@given(st.binary(max_size=60))
def test_arbitrary_bytes(data):
    assert_not_more_lenient_than_the_library(data)
    assert_not_more_lenient_than_the_library(to_file(b"{" + data, 0))
