"""Pure: the bytes of a safetensors header -> records of its tensors, strictly checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from analyzer.base.errors import HeaderError, shown


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a safetensors file; `start` and `stop` are byte offsets in the file, stop exclusive."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def header_length(first: bytes, file_size: int) -> int:
    """Return the header's length in bytes from the file's first eight.

    Raises HeaderError where the length is impossible for a file of `file_size` bytes.
    """
    if len(first) < LENGTH_BYTES:
        raise HeaderError(f"is {file_size} bytes long, too short for a safetensors header")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"claims a header of {length} bytes; the format allows {MAX_HEADER_BYTES}")
    if length < 2 or LENGTH_BYTES + length > file_size:
        raise HeaderError(f"claims a header of {length} bytes in a file of {file_size}: truncated or not safetensors")
    return length


def parse_header(header: bytes, file_size: int) -> dict[str, TensorRecord]:
    """Return the tensors of a header (without its eight length bytes) by name, in order of their offsets.

    Raises HeaderError on anything the format forbids: not UTF-8 JSON, duplicate keys, an unknown dtype, a shape
    that does not match the offsets, offsets with holes or overlaps or past the end of the file.
    """
    entries = _load_object(header)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("has a __metadata__ that is not a map of strings")
    data_start = LENGTH_BYTES + len(header)
    records = sorted(
        (_record(name, entry, data_start) for name, entry in entries.items()),
        key=lambda r: (r.start, r.stop, r.name),
    )
    expected = data_start
    for record in records:
        if record.start != expected:
            fault = "overlaps the one before it" if record.start < expected else "leaves a hole before it"
            raise HeaderError(f"tensor {shown(record.name)} {fault} (offset {record.start}, expected {expected})")
        expected = record.stop
    if expected != file_size:
        fault = "is truncated" if expected > file_size else "has bytes that no tensor covers"
        raise HeaderError(f"{fault}: its header accounts for {expected} bytes, the file has {file_size}")
    return {record.name: record for record in records}


def _load_object(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise HeaderError("has a header that does not start with '{': not safetensors")
    try:
        loaded = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_no_float,
            parse_int=_natural,
        )
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"has a header that is not JSON: {shown(error)}") from error
    assert isinstance(loaded, dict)  # it starts with '{'
    return loaded


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise HeaderError(f"has the key {shown(twice)} twice in its header")
    # An escape may name half a surrogate pair, which no text has: encoding it raises a ValueError.
    "".join(text for pair in pairs for text in pair if isinstance(text, str)).encode("utf-8")
    return result


def _no_constant(text: str) -> NoReturn:
    raise HeaderError(f"has {text} in its header, which is not JSON")


def _no_float(text: str) -> NoReturn:
    raise HeaderError(f"has the number {shown(text, 40)} in its header where only integers belong")


def _natural(text: str) -> int:
    if text.startswith("-"):  # -0 too, which the safetensors library refuses
        raise HeaderError(f"has the negative number {shown(text, 40)} in its header")
    return int(text)


def _record(name: str, entry: Any, data_start: int) -> TensorRecord:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {shown(name)} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"tensor {shown(name)} has the unknown dtype {shown(dtype, 40)}")
    if not _are_sizes(shape):
        raise HeaderError(f"tensor {shown(name)} has a shape that is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {shown(name)} has data_offsets that are not [start, stop]")
    bits = 8 * (offsets[1] - offsets[0])
    if _elements(shape) * DTYPE_BITS[dtype] != bits:
        raise HeaderError(
            f"tensor {shown(name)} of shape {shown(shape, 60)} and dtype {dtype} does not fill its "
            f"{offsets[1] - offsets[0]} bytes"
        )
    return TensorRecord(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _elements(shape: list[int]) -> int:
    """Return the product, or stop past 64 bits, a zero to come or not: so does the safetensors library.

    A hostile shape must not become a number of megabytes.
    """
    elements = 1
    for size in shape:
        elements *= size
        if elements >= 2**64:
            break
    return elements


def _are_sizes(value: Any) -> bool:
    """Tell whether this is a list of integers that fit 64 bits (`True` is an int to Python, but not a size)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**64 for n in value)
