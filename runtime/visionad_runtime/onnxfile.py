"""ONNX models read and written byte by byte (protobuf), because the lean install has no ``onnx``.

Only what is needed here: the fields of any message, nodes with their names and numbers, small constants. Fields are numbered as in
onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
GRAPH, OPSETS = 7, 8
"""Fields of a ModelProto."""
NODE, INITIALIZER, OUTPUT = 1, 5, 12
"""Fields of a GraphProto."""
VARINT, WIDE, TEXT, NARROW = 0, 1, 2, 5
"""Kinds of a field on the wire: a number of any length, of 8 bytes, a text or message, a number of 4 bytes."""
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8"), 10: np.dtype("<f2"), 16: np.dtype("<u2")}
"""NumPy's types of ONNX's, of those that constants have here; the last is bfloat16, the upper half of a float32."""
FLOAT, BFLOAT16 = 1, 16
Attribute = int | float | str | list[int]


class Field(NamedTuple):
    """A field of a message: ``number``, ``kind``, where it lies with its tag, where its ``payload`` lies, a varint's ``value``."""

    number: int
    kind: int
    place: slice
    payload: slice
    value: int


class Node(NamedTuple):
    """A NodeProto, of its attributes only numbers, texts and lists of integers; ``place``: where it lies in the file it is from."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Attribute] = {}
    domain: str = ""
    place: slice | None = None


def fields(data: memoryview, within: slice | None = None) -> Iterator[Field]:
    """The fields of the message that lies ``within`` the data (default: all of it).

    Raises:
        ValueError: that is no message.
    """
    at, end = (0, len(data)) if within is None else (within.start, within.stop)
    while at < end:
        begin = at
        tag, at = _varint_at(data, at, end)
        kind, value, length = tag & 7, 0, 0
        if kind == VARINT:
            value, stop = _varint_at(data, at, end)
            length = stop - at
        elif kind == TEXT:
            length, at = _varint_at(data, at, end)
        elif kind in (WIDE, NARROW):
            length = 8 if kind == WIDE else 4
        else:
            raise ValueError(f"no field of ONNX at byte {begin}")
        if at + length > end:
            raise ValueError(f"the field at byte {begin} does not end")
        yield Field(tag >> 3, kind, slice(begin, at + length), slice(at, at + length), value)
        at += length


def _varint_at(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the number before byte {at} does not end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def text(data: memoryview, place: slice) -> str:
    """What lies there, as text."""
    return str(data[place], "utf-8")


def read_node(data: memoryview, place: slice) -> Node:
    """The node that lies there.

    Raises:
        ValueError: there lies none.
    """
    names: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
    attributes: dict[str, Attribute] = {}
    for f in fields(data, place):
        if f.number in names:
            names[f.number].append(text(data, f.payload))
        elif f.number == 5:
            attributes |= _read_attribute(data, f.payload)
    return Node("".join(names[4]), names[1], names[2], attributes, "".join(names[7]), place)


def _read_attribute(data: memoryview, place: slice) -> dict[str, Attribute]:
    name, value = "", list[Attribute]()
    integers: list[int] = []
    for f in fields(data, place):
        if f.number == 1:
            name = text(data, f.payload)
        elif f.number == 2:
            value += struct.unpack("<f", data[f.payload])
        elif f.number == 3:
            value.append(_signed(f.value))
        elif f.number == 4:
            value.append(str(data[f.payload], "utf-8", "replace"))
        elif f.number == 8:
            integers += integers_of(data, f)
        elif f.number in (6, 11):
            raise ValueError(f"a node has a graph within it, as {name or 'an attribute'}")
    value += [integers] if integers else []
    return {name: value[0]} if value else {}


def integers_of(data: memoryview, repeated: Field) -> list[int]:
    """Of a field of repeated integers: one, or several that are packed.

    Raises:
        ValueError: they do not end with the field.
    """
    if repeated.kind == VARINT:
        return [_signed(repeated.value)]
    found, at = [], repeated.payload.start
    while at < repeated.payload.stop:
        value, at = _varint_at(data, at, repeated.payload.stop)
        found.append(_signed(value))
    return found


class Tensor(NamedTuple):
    """A TensorProto: name, ``shape``, type by ONNX's number, and where its bytes lie, if they lie in the file as one piece."""

    name: str
    shape: list[int]
    kind: int
    raw: slice | None
    place: slice


def read_tensor(data: memoryview, place: slice) -> Tensor:
    """The tensor that lies there; of its content only where it is.

    Raises:
        ValueError: there lies none.
    """
    name, shape, kind, raw = "", list[int](), 0, None
    for f in fields(data, place):
        if f.number == 1:
            shape += integers_of(data, f)
        elif f.number == 2:
            kind = f.value
        elif f.number == 8:
            name = text(data, f.payload)
        elif f.number == 9:
            raw = f.payload
    return Tensor(name, shape, kind, raw, place)


def constant(data: memoryview, tensor: Tensor) -> NDArray[Any] | None:
    """Its content, where it is of one of :data:`DTYPES` and lies in the file; bfloat16 as float32.

    Raises:
        ValueError, TypeError: there is less of it than its shape says.
    """
    dtype = DTYPES.get(tensor.kind)
    if dtype is None or tensor.raw is None:
        return None
    values: NDArray[Any] = np.ndarray(tensor.shape, dtype, data[tensor.raw])
    if tensor.kind == BFLOAT16:
        values = np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
    return values


# -- writing -----------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out, value = b"", value % (1 << 64)
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def int_field(number: int, value: int) -> bytes:
    """A number."""
    return _varint(number << 3 | VARINT) + _varint(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A text or a message."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | TEXT) + _varint(len(data)) + data


def write_node(node: Node) -> bytes:
    """A NodeProto with attributes that are numbers."""
    out = [bytes_field(1, name) for name in node.inputs] + [bytes_field(2, name) for name in node.outputs]
    out.append(bytes_field(4, node.kind))
    for name, value in node.attributes.items():
        if isinstance(value, int):
            written = int_field(3, value) + int_field(20, 2)
        else:
            assert isinstance(value, float), name
            written = _varint(2 << 3 | NARROW) + struct.pack("<f", value) + int_field(20, 1)
        out.append(bytes_field(5, bytes_field(1, name) + written))
    return b"".join([*out, bytes_field(7, node.domain)])


def write_constant(name: str, values: NDArray[np.float32]) -> bytes:
    """A TensorProto of float32."""
    return write_tensor(name, FLOAT, values.shape, values.astype("<f4").tobytes())


def write_tensor(name: str, kind: int, shape: Sequence[int], raw: bytes) -> bytes:
    """A TensorProto of the type of that number, with its content."""
    sizes = b"".join(int_field(1, n) for n in shape)
    return sizes + int_field(2, kind) + bytes_field(8, name) + bytes_field(9, raw)


def write_reference(tensor: Tensor, file: str) -> bytes:
    """A TensorProto whose bytes stay where they lie, in a file of that name beside the model."""
    assert tensor.raw is not None
    entries = {"location": file, "offset": tensor.raw.start, "length": tensor.raw.stop - tensor.raw.start}
    where = b"".join(bytes_field(13, bytes_field(1, k) + bytes_field(2, str(v))) for k, v in entries.items())
    shape = b"".join(int_field(1, n) for n in tensor.shape)
    return shape + int_field(2, tensor.kind) + bytes_field(8, tensor.name) + where + int_field(14, 1)


def opset(domain: str, version: int) -> bytes:
    """An OperatorSetIdProto."""
    return bytes_field(1, domain) + int_field(2, version)
