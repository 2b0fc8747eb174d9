"""Tensors of the Open Inference Protocol v2: requests to images, results to answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from fastapi.responses import Response
from numpy.typing import NDArray

from ..images.arrays import from_array
from ..images.decode import decode
from ..images.pixels import RGB8
from .oip_names import DEFAULT_OUTPUTS, HEADER, INPUTS, MODEL, OUTPUTS, VERSION, InspectedImage
from .queue import RequestError

MAX_IMAGES = 32
"""Of a request. They take places in the queue one after the other."""
BINARY, BINARY_SIZE, ALL_BINARY = "binary_data", "binary_data_size", "binary_data_output"


class Tensor(NamedTuple):
    """An input: its shape and its elements, bytes objects for ``BYTES`` and one uint8 array for ``UINT8``."""

    shape: tuple[int, ...]
    values: list[bytes] | NDArray[np.uint8]


class InferRequest(NamedTuple):
    """A request: inputs by name, outputs by name → whether binary, and the client's id."""

    inputs: dict[str, Tensor]
    outputs: dict[str, bool]
    id: str


def parse_request(body: bytes, header: str | None) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, followed by binary tensors.
        header: length of the JSON, or ``None`` if there is nothing else.

    Raises:
        RequestError: 400, it is malformed.
    """
    length = len(body)
    if header is not None:
        if not header.isdecimal() or len(header) > 12 or int(header) > len(body):
            raise RequestError(
                400, f"{HEADER}: expected the length of the JSON, at most {len(body)}, got {header[:40]!r}"
            )
        length = int(header)
    try:
        facts = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise RequestError(400, "expected the JSON of the Open Inference Protocol, got something else") from None
    if not isinstance(facts, dict):
        raise RequestError(400, "expected a JSON object")
    inputs: dict[str, Tensor] = {}
    rest = memoryview(body)[length:]
    for one in _objects(facts, "inputs"):
        name, tensor, used = _tensor(one, rest)
        if name in inputs:
            raise RequestError(400, f"input {name!r} stands twice")
        inputs[name], rest = tensor, rest[used:]
    if rest:
        raise RequestError(400, f"{len(rest)} bytes are left after the tensors; check their binary_data_size")
    parameters = facts.get("parameters") or {}
    binary = isinstance(parameters, dict) and parameters.get(ALL_BINARY) is True
    outputs: dict[str, bool] = {}
    known = [name for name, _, _ in OUTPUTS]
    for one in _objects(facts, "outputs") if facts.get("outputs") else ():
        name, more = str(one.get("name")), one.get("parameters") or {}
        if name not in known:
            raise RequestError(400, f"output {name[:60]!r}: expected one of {', '.join(known)}")
        outputs[name] = bool(more.get(BINARY, binary)) if isinstance(more, dict) else binary
    request_id = facts.get("id", "")
    if not isinstance(request_id, str):
        raise RequestError(400, "id: expected a string")
    return InferRequest(inputs, outputs or dict.fromkeys(DEFAULT_OUTPUTS, binary), request_id)


def _objects(facts: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = facts.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise RequestError(400, f"{key}: expected a list of tensors")
    return found


def _tensor(one: Mapping[str, Any], rest: memoryview) -> tuple[str, Tensor, int]:
    """Return an input's name, the tensor, and how many bytes of ``rest`` it takes."""
    kinds = {name: kind for name, kind, _ in INPUTS}
    name, kind, shape = one.get("name"), one.get("datatype"), one.get("shape")
    if not isinstance(name, str) or name not in kinds:
        raise RequestError(400, f"input {repr(name)[:60]}: expected one of {', '.join(kinds)}")
    if kind != kinds[name]:
        raise RequestError(400, f"input {name}: expected datatype {kinds[name]}, got {repr(kind)[:20]}")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 4
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 1 << 20 for n in shape)
    ):
        raise RequestError(400, f"input {name}: expected a shape of one to four whole numbers, got {repr(shape)[:60]}")
    count = int(np.prod(np.array(shape, dtype=object))) if shape else 0
    parameters = one.get("parameters") or {}
    size = parameters.get(BINARY_SIZE) if isinstance(parameters, dict) else None
    if size is None:
        return name, Tensor(tuple(shape), _from_json(name, kind, count, one.get("data"))), 0
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise RequestError(
            400, f"input {name}: expected at most {len(rest)} bytes, got {BINARY_SIZE} {repr(size)[:20]}"
        )
    data = rest[:size]
    if kind == "UINT8":
        if size != count:
            raise RequestError(400, f"input {name}: expected {count} bytes for shape {shape}, got {size}")
        return name, Tensor(tuple(shape), np.frombuffer(data, np.uint8)), size
    return name, Tensor(tuple(shape), _split(name, data, count)), size


def _from_json(name: str, kind: str, count: int, data: object) -> list[bytes] | NDArray[np.uint8]:
    flat: list[Any] = []

    def walk(value: object, depth: int) -> None:
        if isinstance(value, list) and depth < 5:
            for one in value:
                walk(one, depth + 1)
        else:
            flat.append(value)

    if not isinstance(data, list):
        raise RequestError(400, f"input {name}: expected data, or {BINARY_SIZE}")
    walk(data, 0)
    if len(flat) != count:
        raise RequestError(400, f"input {name}: expected {count} elements for its shape, got {len(flat)}")
    if kind == "UINT8":
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in flat):
            raise RequestError(400, f"input {name}: expected whole numbers from 0 to 255")
        return np.array(flat, np.uint8)
    if not all(isinstance(v, str) for v in flat):
        raise RequestError(400, f"input {name}: expected strings; send files as a binary tensor")
    return [v.encode("utf-8", "surrogatepass") for v in flat]


def _split(name: str, data: memoryview, count: int) -> list[bytes]:
    """Split a binary BYTES tensor: each element has its length before it, 4 bytes, little endian."""
    values, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        if place + 4 + size > len(data):
            break
        values.append(bytes(data[place + 4 : place + 4 + size]))
        place += 4 + size
    if place != len(data) or len(values) != count:
        raise RequestError(400, f"input {name}: expected {count} elements with their lengths, got other bytes")
    return values


def images_of(inputs: Mapping[str, Tensor]) -> list[Callable[[], RGB8]]:
    """Return what decodes the images of a request, one each. It raises :class:`ImageError` where a file cannot be decoded.

    Raises:
        RequestError: 400, there is not exactly one of ``image`` and ``file``, or a shape is wrong.
    """
    if ("image" in inputs) == ("file" in inputs):
        raise RequestError(400, "expected one of the inputs image and file")
    if "file" in inputs:
        files = inputs["file"].values
        _check_count(len(files))
        assert isinstance(files, list)
        return [partial(decode, file, "file") for file in files]
    shape, values = inputs["image"]
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3) or 0 in shape:
        raise RequestError(400, f"input image: expected shape (n, h, w, 3) RGB or (n, h, w), got {shape}")
    _check_count(shape[0])
    assert isinstance(values, np.ndarray)
    return [partial(from_array, one, "rgb") for one in values.reshape(shape)]


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_IMAGES:
        raise RequestError(400, f"expected 1 to {MAX_IMAGES} images, got {count}")


def classes_of(inputs: Mapping[str, Tensor], count: int) -> list[str | None]:
    if "class" not in inputs:
        return [None] * count
    values = inputs["class"].values
    if len(values) not in (1, count):
        raise RequestError(400, f"input class: expected 1 or {count} names, got {len(values)}")
    try:
        names = [bytes(value).decode() for value in values]
    except UnicodeDecodeError:
        raise RequestError(400, "input class: expected names in UTF-8") from None
    return [name or None for name in (names * count if len(names) == 1 else names)]


def answer(request: InferRequest, results: Sequence[InspectedImage]) -> Response:
    """Return the response for the results of a request."""
    texts = {
        "verdict": [result.verdict.encode() for result in results],
        "result": [json.dumps(result.to_dict(""), ensure_ascii=False).encode() for result in results],
    }
    arrays = {
        "score": lambda: np.array([result.score for result in results], np.float32),
        "anomaly_map": lambda: np.stack([result.anomaly_map for result in results]).astype(np.float32, copy=False),
    }
    outputs, binary = [], b""
    for name, is_binary in request.outputs.items():
        one: dict[str, Any] = {"name": name}
        if name in texts:
            values = texts[name]
            one |= {"datatype": "BYTES", "shape": [len(values)]}
            data = b"".join(len(v).to_bytes(4, "little") + v for v in values) if is_binary else b""
            plain: object = [v.decode() for v in values]
        else:
            array = arrays[name]()
            one |= {"datatype": "FP32", "shape": list(array.shape)}
            data, plain = array.tobytes(), None if is_binary else array.ravel().tolist()
        if is_binary:
            one["parameters"] = {BINARY_SIZE: len(data)}
            binary += data
        else:
            one["data"] = plain
        outputs.append(one)
    facts = {"model_name": MODEL, "model_version": VERSION, "outputs": outputs}
    if request.id:
        facts["id"] = request.id
    # Lone surrogates, which JSON's escapes can make, have no UTF-8. Written as they came, they are such an escape again.
    head = json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace")
    if not binary:
        return Response(head, media_type="application/json")
    return Response(head + binary, media_type="application/octet-stream", headers={HEADER: str(len(head))})
