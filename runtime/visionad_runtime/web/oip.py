"""Open Inference Protocol v2 (KServe, Triton) over HTTP, with binary tensors.

Inputs are ``image``, UINT8 (n, h, w, 3) RGB or (n, h, w), or ``file``, BYTES (n) of image files; and ``class``, BYTES (n) or (1),
if the classes are known. Outputs are ``score`` FP32 (n), ``verdict`` BYTES (n), ``result`` BYTES (n) with the JSON of ``/inspect``,
and ``anomaly_map`` FP32 (n, 256, 256) if it is asked for.

Source: https://github.com/kserve/open-inference-protocol and Triton's binary tensor extension.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from .._release import __version__
from ..images.arrays import from_array
from ..images.decode import decode
from ..images.pixels import RGB8
from ..result import Result
from .answers import error_responses
from .forms import check_encoding
from .queue import RequestError, UploadedImage
from .service import InspectionService
from .uploads import receive

MODEL = "visionad"
VERSION = "1"
HEADER = "inference-header-content-length"
"""Length of the JSON before binary tensors, in bytes."""
MAX_IMAGES = 32
"""Of a request. They take places in the queue one after the other."""
INPUTS = (("image", "UINT8", [-1, -1, -1, 3]), ("file", "BYTES", [-1]), ("class", "BYTES", [-1]))
OUTPUTS = (
    ("score", "FP32", [-1]),
    ("verdict", "BYTES", [-1]),
    ("result", "BYTES", [-1]),
    ("anomaly_map", "FP32", [-1, 256, 256]),
)
DEFAULT_OUTPUTS = ("score", "verdict", "result")
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


def add_oip_endpoints(app: FastAPI, service: InspectionService) -> None:
    """Add ``/v2/…`` to the service."""
    path = f"/v2/models/{MODEL}"
    versions = (path, f"{path}/versions/{VERSION}")
    unready: dict[int | str, dict[str, Any]] = {
        **error_responses(),
        503: {"description": "no class is enrolled, or the queue is full"},
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/json": {}, "application/octet-stream": binary}},
        **error_responses(408, 409, 413, 503),
    }

    def is_ready() -> bool:
        return bool(service.bank().classes) and not service.full

    async def state(**facts: object) -> Response:
        ready = await asyncio.to_thread(is_ready)
        return JSONResponse({**facts, "ready": ready}, 200 if ready else 503)

    @app.get("/v2", response_model=None, responses=error_responses())
    async def server() -> Response:
        """Name and version of the service."""
        return JSONResponse({"name": MODEL, "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", response_model=None, responses=error_responses())
    async def live() -> Response:
        """Status 200 as long as it answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", response_model=None, responses=unready)
    async def ready() -> Response:
        """Status 200 if images can be inspected, else 503."""
        return await state(live=True)

    async def model_ready() -> Response:
        """Status 200 if images can be inspected, else 503."""
        return await state(name=MODEL)

    async def metadata() -> Response:
        """Inputs and outputs."""
        inputs, outputs = (
            [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors]
            for tensors in (INPUTS, OUTPUTS)
        )
        facts = {"name": MODEL, "versions": [VERSION], "platform": "visionad", "inputs": inputs, "outputs": outputs}
        return JSONResponse(facts)

    async def infer(request: Request) -> Response:
        """Inspect images in tensors. Outputs are those of `/inspect`."""
        service.check_queue()
        check_encoding(request.headers.get("content-encoding", ""))
        body = await receive(request, service)
        asked = await asyncio.to_thread(parse_request, body, request.headers.get(HEADER))
        images = _images(asked.inputs)
        classes = _classes(asked.inputs, len(images))
        results = []
        for decoded, name in zip(images, classes, strict=True):
            with service.place():  # decoded too: small files may hold large images
                upload = UploadedImage(await asyncio.to_thread(decoded), "", b"")
                results.append(await service.inspect(upload, name))
        return answer(asked, results)

    for prefix in versions:
        app.get(f"{prefix}/ready", response_model=None, responses=unready)(model_ready)
        app.get(prefix, response_model=None, responses=error_responses())(metadata)
        app.post(f"{prefix}/infer", response_model=None, responses=answers, openapi_extra=_BODY)(infer)


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON of the protocol, followed by binary tensors if the header Inference-Header-Content-Length says so",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


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


def _images(inputs: Mapping[str, Tensor]) -> list[Callable[[], RGB8]]:
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


def _classes(inputs: Mapping[str, Tensor], count: int) -> list[str | None]:
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


def answer(request: InferRequest, results: Sequence[Result]) -> Response:
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
