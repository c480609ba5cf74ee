"""The header of a GGUF file: metadata and the table of tensors.

The constants are the `gguf` library's. Its GGUFReader is not used: it walks an array of 2**60
numbers that a damaged file claims to hold, and takes seconds to read a vocabulary. Here every
count, length and offset is compared with the file's size before anything is read. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, dequantize

from emjax.errors import UserError
from emjax.runtime.numbers import integer

_VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q", GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d",
}  # fmt: skip
_LONGEST_ARRAY = 2**22  # a vocabulary of 256,000 tokens has half a million merges
_LONGEST_NAME = 2**16  # of a key or a tensor; the format's own limit
_SHORTEST_FIELD = 8 + 4 + 1  # a key's length, a type, a value
# A name's length, the number of dimensions, one dimension, a type, an offset.
_SHORTEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor is in the file, and how it is stored."""

    name: str
    shape: tuple[int, ...]  # in torch's order: [out, in]
    type: GGMLQuantizationType
    start: int
    row_bytes: int  # of one row, a run along the last dimension

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


@dataclasses.dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: Path) -> Header:
    """Reads metadata and the table of tensors, not the tensors.

    Raises UserError, which names the file and the field, for whatever is not a complete GGUF of
    version 2 or 3 with tensors that lie within the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{path} cannot be read as a GGUF ({error}); fetch it again.") from error


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.at = 0

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.path}: {problem}. The file is damaged or is no GGUF; fetch it again.")

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            self.fail("the first four bytes are not GGUF")
        self.at = 4
        version = self.number("<I", "the version")
        if version not in _VERSIONS:
            big_endian = " (or its bytes are in big-endian order)" if version & 0xFFFF == 0 else ""
            self.fail(f"the version is {version}{big_endian}; emjax reads little-endian files of version 2 and 3")
        tensors = self.count("the number of tensors", _SHORTEST_TENSOR)
        fields = self.count("the number of metadata fields", _SHORTEST_FIELD)
        metadata = self.metadata(fields)
        if integer(metadata.get("split.count", 1), f"{self.path}: split.count") > 1:
            raise UserError(
                f"{self.path} is one part of a model (split.count is {metadata['split.count']}). Join the parts with "
                "`llama-gguf-split --merge`, and give the joined file."
            )
        return Header(metadata, self.tensors(tensors, metadata))

    def left(self) -> int:
        return len(self.data) - self.at

    def number(self, layout: str, what: str) -> Any:
        size = struct.calcsize(layout)
        if size > self.left():
            self.fail(f"the file ends within {what}")
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        return value

    def count(self, what: str, smallest: int) -> int:
        """A number of things that take at least `smallest` bytes each."""
        count = self.number("<Q", what)
        if count * smallest > self.left():
            self.fail(f"{what} is {count}, but only {self.left()} bytes follow")
        return count

    def string(self, what: str, longest: float = math.inf) -> str:
        length = self.count(f"the length of {what}", 1)
        if length > longest:
            self.fail(f"{what} has {length} bytes")
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8 ({error})")

    def metadata(self, count: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for number in range(count):
            key = self.string(f"the name of metadata field {number}", _LONGEST_NAME)
            if key in fields:
                self.fail(f"the metadata field {key!r} occurs twice")
            fields[key] = self.value(self.number("<I", f"the type of {key!r}"), key)
        return fields

    def value(self, kind: int, key: str) -> Any:
        what = f"the metadata field {key!r}"
        if kind in _SCALARS:
            return self.number(_SCALARS[GGUFValueType(kind)], what)
        if kind == GGUFValueType.STRING:
            return self.string(what)
        if kind != GGUFValueType.ARRAY:
            self.fail(f"{what} has the unknown type {kind}")
        element = self.number("<I", what)
        if element != GGUFValueType.STRING and element not in _SCALARS:
            self.fail(f"{what} is an array of type {element}; emjax reads arrays of numbers and strings")
        # A string takes at least the eight bytes of its length.
        layout = "<Q" if element == GGUFValueType.STRING else _SCALARS[GGUFValueType(element)]
        count = self.count(f"the length of {what}", struct.calcsize(layout))
        if count > _LONGEST_ARRAY:
            self.fail(f"{what} has {count} elements, more than the {_LONGEST_ARRAY} that emjax reads")
        if element == GGUFValueType.STRING:
            return [self.string(what) for _ in range(count)]
        values = struct.unpack_from(f"<{count}{layout[1]}", self.data, self.at)
        self.at += count * struct.calcsize(layout)
        return list(values)

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, Tensor]:
        table: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for number in range(count):
            name = self.string(f"the name of tensor {number}", _LONGEST_NAME)
            if name in table:
                self.fail(f"the tensor {name!r} occurs twice")
            what = f"the shape of the tensor {name!r}"
            dimensions = self.number("<I", what)
            if not 1 <= dimensions <= 4:
                self.fail(f"the tensor {name!r} has {dimensions} dimensions")
            shape = tuple(self.number("<Q", what) for _ in range(dimensions))[::-1]
            table[name] = shape, self.number("<I", f"the type of {name!r}"), self.number("<Q", f"the offset of {name!r}")
        where = f"{self.path}: the metadata field 'general.alignment'"
        alignment = integer(metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT), where, low=1, high=2**20)
        start = -(-self.at // alignment) * alignment
        return {name: self.tensor(name, *entry, start, alignment) for name, entry in table.items()}

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, alignment: int) -> Tensor:
        what = f"the tensor {name!r}"
        if kind not in READABLE:
            known = ", ".join(one.name for one in READABLE.values())
            stored = GGMLQuantizationType(kind).name if kind in set(GGMLQuantizationType) else f"the unknown type {kind}"
            raise UserError(
                f"{self.path}: {what} is stored as {stored}; emjax reads {known}. Use a file of one of these types."
            )
        block, size = GGML_QUANT_SIZES[READABLE[kind]]
        if 0 in shape or shape[-1] % block:
            self.fail(f"{what} has the shape {list(shape)}, but {READABLE[kind].name} is stored in blocks of {block}")
        tensor = Tensor(name, shape, READABLE[kind], start + offset, shape[-1] // block * size)
        if offset % alignment:
            self.fail(f"{what} is at offset {offset}, which is not a multiple of {alignment}")
        if tensor.start + tensor.rows * tensor.row_bytes > len(self.data):
            self.fail(f"{what} of shape {list(shape)} at offset {offset} goes beyond the end of the file")
        return tensor


def _readable() -> dict[int, GGMLQuantizationType]:
    """The floats of weights, and the quantised types that the library turns into them."""
    found = {}
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = kind
    return found


READABLE = _readable()
