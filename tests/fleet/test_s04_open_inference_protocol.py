"""S4: real clients of the Open Inference Protocol get what ``/inspect`` says; no request is answered with 500 or hangs."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import part
from tests.fleet.components import environment, module, note, releases
from tests.fleet.servers import Service, inspected, png, serving, untimed

pytest.importorskip("fastapi", reason="serving takes the serve extra")
IMAGES = [(part(i, defect=i % 3 == 0, kind="grid" if i % 2 else "disc")) for i in range(6)]


@pytest.fixture(scope="module")
def service(tiny_model: Path, filled_bank: Path) -> Iterator[Service]:
    with serving(tiny_model, filled_bank) as running:
        yield running


@pytest.fixture(scope="module")
def expected(service: Service) -> list[dict[str, Any]]:
    return [inspected(service.port, image) for image in IMAGES]


def infer(service: Service, head: dict[str, Any], tail: bytes = b"", length: object = None) -> tuple[int, Any]:
    data = json.dumps(head).encode()
    headers = (
        {"Inference_Header_Content_Length": str(len(data) if length is None else length)} if tail or length else {}
    )
    status, body = service.ask("POST", "/v2/models/visionad/infer", data + tail, **headers)
    return status, body


def test_s4_tritonclient(service: Service, expected: list[dict[str, Any]]) -> None:
    module("tritonclient")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("visionad")
    metadata = client.get_model_metadata("visionad")
    assert {one["name"] for one in metadata["inputs"]} == {"image", "file", "class"}
    files = np.array([png(image) for image in IMAGES], dtype=np.object_)
    rgb = np.stack([image[:, :, ::-1] for image in IMAGES])
    for name, values, kind in (("file", files, "BYTES"), ("image", rgb, "UINT8")):
        for binary in (True, False) if name == "image" else (True,):
            given = triton.InferInput(name, list(values.shape), kind)
            given.set_data_from_numpy(values, binary_data=binary)
            outputs = [triton.InferRequestedOutput(o, binary_data=binary) for o in ("result", "score", "anomaly_map")]
            answer = client.infer("visionad", [given], outputs=outputs)
            results = [json.loads(text) for text in answer.as_numpy("result")]
            assert [untimed(result) for result in results] == expected
            assert answer.as_numpy("score") == pytest.approx([one["score"] for one in expected])
            assert answer.as_numpy("anomaly_map").shape == (len(IMAGES), 256, 256)
    with pytest.raises(InferenceServerException, match=r"\[400\].*file"):
        bad = triton.InferInput("file", [1], "BYTES")
        bad.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
        client.infer("visionad", [bad])
    note("S4 tritonclient", images=3 * len(IMAGES), releases=releases("tritonclient"))


KSERVE = """
import asyncio, json, sys
from pathlib import Path
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
async def talk(base, folder):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, "visionad")
    for path in sorted(Path(folder).glob("*.npy")):
        image = np.load(path)
        given = InferInput("image", [1, *image.shape], "UINT8")
        given.set_data_from_numpy(np.ascontiguousarray(image[None, :, :, ::-1]), binary_data=True)
        answer = await client.infer(base, InferRequest("visionad", [given]), model_name="visionad")
        print(next(one for one in answer.outputs if one.name == "result").data[0])
asyncio.run(talk(*sys.argv[1:]))
"""


def test_s4_kserve(service: Service, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """Its SDK forces old releases of other packages, so it lies in an environment of its own."""
    python = environment("kserve")
    for number, image in enumerate(IMAGES):
        np.save(tmp_path / f"{number}.npy", image)
    command = [python, "-c", KSERVE, f"http://127.0.0.1:{service.port}", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [untimed(json.loads(line)) for line in done.stdout.splitlines()]
    assert results == expected
    note("S4 kserve", images=len(results), releases=releases("kserve", python=python))


def test_s4_classes_are_given(service: Service) -> None:
    image = part(1)
    rgb = np.ascontiguousarray(image[:, :, ::-1]).tobytes()
    shape = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 96, 128, 3],
        "parameters": {"binary_data_size": len(rgb)},
    }
    given = {"name": "class", "datatype": "BYTES", "shape": [1], "data": ["grid"]}
    status, body = infer(service, {"inputs": [shape, given], "outputs": [{"name": "result"}]}, rgb)
    assert status == 200
    assert untimed(json.loads(json.loads(body)["outputs"][0]["data"][0])) == inspected(
        service.port, image, "?class=grid"
    )
    given["data"] = ["no class"]
    status, body = infer(service, {"inputs": [shape, given]}, rgb)
    assert status == 409 and b"no class" in body


SIZES = st.one_of(
    st.integers(-2, 70), st.sampled_from([1 << 20, 1 << 40, 10**30]), st.none(), st.text(max_size=3), st.floats()
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "file", "class", "x", 3, None]),
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32", None]),
        "shape": st.lists(SIZES, max_size=5) | st.none(),
        "data": st.recursive(SIZES, lambda inner: st.lists(inner, max_size=4), max_leaves=12),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": SIZES})
        | st.none()
        | st.lists(SIZES, max_size=1),
    },
)
OUTPUT = st.fixed_dictionaries({}, optional={"name": st.sampled_from(["score", "y", 1]), "parameters": SIZES})
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSOR, max_size=3) | st.none(),
        "outputs": st.lists(OUTPUT, max_size=2),
        "parameters": st.none() | SIZES,
        "id": st.text(max_size=3) | st.integers(),
    },
)  # fmt: skip


BODIES, TENSORS = 150, 100
"""Requests that hypothesis makes up."""


@settings(max_examples=BODIES)
@given(head=REQUEST, tail=st.binary(max_size=80), shift=st.sampled_from([0, 0, 0, -1, 5, 10**9]))
def test_s4_any_request_is_refused_in_one_line(service: Service, head: dict[str, Any], tail: bytes, shift: int) -> None:
    data = json.dumps(head).encode()
    headers = {"Inference_Header_Content_Length": str(len(data) + shift)}
    status, body = service.ask("POST", "/v2/models/visionad/infer", data + tail, **headers)
    assert status in (400, 409), body
    assert "\n" not in json.loads(body)["error"]


@settings(max_examples=TENSORS)
@given(
    size=st.integers(0, 40),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    name=st.sampled_from(["image", "file"]),
    lengths=st.lists(st.integers(0, 9), max_size=3),
)
def test_s4_lengths_and_shapes_of_binary_tensors(
    service: Service, size: int, shape: list[int], name: str, lengths: list[int]
) -> None:
    tail = b"".join(struct.pack("<I", n) + b"x" * n for n in lengths) if name == "file" else bytes(size)
    one = {"name": name, "datatype": "BYTES" if name == "file" else "UINT8", "shape": shape}
    head = {"inputs": [{**one, "parameters": {"binary_data_size": len(tail)}}]}
    status, body = infer(service, head, tail, None)
    assert status in (200, 400), body
    whole = name == "image" and len(tail) == int(np.prod(shape)) and 0 not in shape
    good_shape = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    assert (status == 200) == (whole and good_shape)
