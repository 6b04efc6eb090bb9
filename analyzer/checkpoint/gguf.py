"""A GGUF file's header: its metadata, and where its tensors lie (versions 2 and 3 of ggml's format).

It is read in blocks, never mapped. What is large in it, a vocabulary or a chat's template, is passed over.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from analyzer.base.config import GGUF
from analyzer.base.errors import HeaderError, shown
from analyzer.checkpoint.header import TensorRecord
from analyzer.encodings.ggml import ggml_type

MAGIC = b"GGUF"
OLDER_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla: what came before
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 100_000_000  # the largest known vocabulary, with merges, takes some 15 MB
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME_BYTES = (1 << 16) - 1
MAX_DIMENSIONS = 4
MAX_KEPT_BYTES = 4096  # of a value
FIRST_READ, MOST_READ = 1 << 18, 1 << 22  # bytes; each read is half as long as all before it

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 8: "s", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = "s", 9  # of the types of values: a form of `struct`, as those of numbers are, and a number

# What config.json calls the numbers that follow the architecture's name in a key.
CONFIG_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
}
TOWERS = ("vision", "audio")  # of a file that holds what goes before a language model

Read = Callable[[int, int], bytes]
"""Reads the bytes of the file from a start to a stop, exclusive."""


@dataclass(frozen=True)
class GgufHeader:
    """What a header says; of metadata that is large the value is null."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]


def read_gguf_header(read: Read, file_size: int) -> GgufHeader:
    """Read a file's header. The shapes of its records are in NumPy's order, [out, in], where the file's are reversed.

    Raises HeaderError on anything that breaks the format, or leads out of the file: counts, lengths, types, a name or
    key twice, offsets that are not aligned, that overlap, or that the file is too short for.
    """
    cursor = _Cursor(read, file_size)
    _check_start(cursor, file_size)
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise HeaderError(f"claims {tensor_count} tensors and {key_count} keys, too many to be true")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.name()
        if key in metadata:
            raise HeaderError(f"has the key {shown(key)} twice in its header")
        metadata[key] = _value(cursor, key)
    placed: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(tensor_count):
        name = cursor.name()
        if name in placed:
            raise HeaderError(f"has the tensor {shown(name)} twice")
        placed[name] = _placement(cursor, name)
    return GgufHeader(metadata, _records(placed, cursor.position, _alignment(metadata), file_size))


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata under the names of config.json. Raises HeaderError where they name no architecture."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise HeaderError("names no general.architecture, so is no whole model")
    config = {"model_type": architecture, "format": GGUF, **_sizes(metadata, architecture)}
    for tower in TOWERS:
        if sizes := _sizes(metadata, f"{architecture}.{tower}"):
            config[f"{tower}_config"] = sizes
    return config


def _sizes(metadata: Mapping[str, Any], prefix: str) -> dict[str, int]:
    found = {name: metadata.get(f"{prefix}.{key}") for name, key in CONFIG_KEYS.items()}
    sizes = {name: value for name, value in found.items() if type(value) is int and value > 0}
    predicting = sizes.get("num_nextn_predict_layers", 0)  # which block_count counts too
    if sizes.get("num_hidden_layers", 0) > predicting:
        sizes["num_hidden_layers"] -= predicting
    return sizes


def _check_start(cursor: _Cursor, file_size: int) -> None:
    """Refuse what is no GGUF file, or one of a version or byte order that is not read."""
    magic = cursor.take(len(MAGIC)) if file_size >= len(MAGIC) else b""
    if magic in OLDER_MAGICS:
        raise HeaderError("is of a format older than GGUF: convert the model again")
    if magic != MAGIC:
        raise HeaderError(f"is no GGUF file: it begins with {shown(magic)}: download it again")
    version = cursor.number("I")
    if version and version & 0xFFFF == 0:
        raise HeaderError("is big-endian, which cannot be read: convert it with gguf-convert-endian")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise HeaderError(f"is GGUF of version {version}; versions {known} can be read")


def _value(cursor: _Cursor, key: str) -> Any:
    """Return a key's value, null where it is passed over."""
    kind = cursor.number("I")
    is_array = kind == ARRAY
    if is_array:
        kind = cursor.number("I")
    form = FORMS.get(kind)
    if form is None:
        raise HeaderError(f"has the key {shown(key)} of the type {'array of ' * is_array}{kind}, which cannot be read")
    if form != TEXT and not is_array:
        return cursor.number(form)
    count = cursor.number("Q")
    if form == TEXT and is_array:
        cursor.skip_texts(count)
        return None
    length = count * struct.calcsize(form)
    if length > MAX_KEPT_BYTES:
        cursor.skip(length)
        return None
    data = cursor.take(length)
    return data.decode("utf-8", "replace") if form == TEXT else list(struct.unpack(f"<{count}{form}", data))


def _placement(cursor: _Cursor, name: str) -> tuple[int, tuple[int, ...], int]:
    """Return a tensor's type, its shape, and its offset among the data."""
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise HeaderError(f"tensor {shown(name)} has {dimensions} dimensions; the format allows {MAX_DIMENSIONS}")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))[::-1]
    return cursor.number("I"), shape, cursor.number("Q")


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise HeaderError(f"has the alignment {shown(alignment, 40)}, which is no power of two")
    return alignment


def _records(
    placed: Mapping[str, tuple[int, tuple[int, ...], int]], header_stop: int, alignment: int, file_size: int
) -> dict[str, TensorRecord]:
    """Return the tensors by name, in order of their offsets; one of an unknown type ends where the next begins."""
    data_start = -(-header_stop // alignment) * alignment
    in_order = sorted(placed.items(), key=lambda item: (item[1][2], item[0]))
    starts = [data_start + offset for _, (_, _, offset) in in_order]
    records = {}
    for (name, (kind, shape, offset)), (start, following) in zip(
        in_order, pairwise([*starts, max([file_size, *starts])]), strict=True
    ):
        if offset % alignment:
            raise HeaderError(f"tensor {shown(name)} has the offset {offset}, no multiple of {alignment}")
        dtype, block = ggml_type(kind)
        stop = following
        if block is not None:
            if (shape[-1] if shape else 1) % block.numbers:
                raise HeaderError(
                    f"tensor {shown(name)} of shape {shown(list(shape), 60)} does not fill blocks of {block.numbers} "
                    f"({dtype})"
                )
            stop = start + math.prod(shape) // block.numbers * block.size
        if max(start, stop) > file_size:
            raise HeaderError(f"is truncated: tensor {shown(name)} ends at byte {stop}, the file has {file_size}")
        if stop > following:
            raise HeaderError(f"tensor {shown(name)} ends at byte {stop}, where the next one has begun ({following})")
        records[name] = TensorRecord(name, dtype, shape, start, stop)
    return records


class _Cursor:
    """A place in a file that only moves on; reads ahead, more at once the further it has come."""

    def __init__(self, read: Read, file_size: int) -> None:
        self._read, self._file_size = read, file_size
        self._block, self._start, self._at = b"", 0, 0

    @property
    def position(self) -> int:
        """Where it is, in bytes."""
        return self._start + self._at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self._have(count)
        self._at += count
        return self._block[self._at - count : self._at]

    def skip(self, count: int) -> None:
        """Pass over bytes, and do not read those that are further than what was read ahead."""
        self._check(self.position + count)
        self._at += count

    def number(self, form: str) -> Any:
        """Return the next number, of a form of `struct`."""
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def name(self) -> str:
        """Return the next text, which names something."""
        length = self.number("Q")
        if length > MAX_NAME_BYTES:
            raise HeaderError(f"has a name of {length} bytes in its header; the format allows {MAX_NAME_BYTES}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise HeaderError("has a name in its header that is not UTF-8") from error

    def skip_texts(self, count: int) -> None:
        """Pass over so many texts."""
        self._check(self.position + 8 * count)
        length_of = struct.Struct("<Q").unpack_from
        while count:
            self._have(8)
            block, at, last = self._block, self._at, len(self._block) - 8
            while count and at <= last:
                at += 8 + length_of(block, at)[0]
                count -= 1
            self._at = at
        self._check(self.position)

    def _have(self, count: int) -> None:
        """Have the next bytes read."""
        if self._at + count <= len(self._block):
            return
        position = self.position
        self._check(position + count)
        known = self._start + len(self._block)
        kept = self._block[self._at :] if position < known else b""
        start = max(position, known)
        stop = max(position + count, start + min(max(FIRST_READ, start // 2), MOST_READ))
        self._block = kept + self._read(start, min(stop, self._file_size))
        self._start, self._at = position, 0

    def _check(self, stop: int) -> None:
        """Refuse a header that goes on to `stop`, where that is beyond the file or all reason."""
        if stop > self._file_size:
            raise HeaderError(f"is truncated: its header goes on past the {self._file_size} bytes of the file")
        if stop > MAX_HEADER_BYTES:
            raise HeaderError(f"claims a header of more than {MAX_HEADER_BYTES} bytes, too long to be true")
