"""Images of requests: what the bank keeps of bare pixels, and what is said of those that do not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime import Inspector
from visionad_runtime.bank.history import verify
from visionad_runtime.bank.store import Bank
from visionad_runtime.errors import BankError, ImageError
from visionad_runtime.formats.files import sha256_bytes
from visionad_runtime.images.decode import decode
from visionad_runtime.images.pixels import pixel_digest, to_rgb
from visionad_runtime.teaching.rebuild import rebuild_bank
from visionad_runtime.web.queue import UploadedImage
from visionad_runtime.web.service import InspectionService
from visionad_runtime.web.uploads import _decoded

from tests.data import part


def sent(kind: str, image: np.ndarray, name: str) -> UploadedImage:
    """An image as a camera sends it: ``png``, or one of the formats of bare pixels."""
    height, width = image.shape[:2]
    if kind == "png":
        return _decoded(cv2.imencode(".png", image)[1].tobytes(), "", name, None, None, None, None)
    body = {"bgr8": image, "rgb8": image[..., ::-1], "mono8": image[..., 1]}[kind].tobytes()
    return _decoded(body, "", name, kind, width, height, None)


def test_a_bank_with_bare_pixels_can_be_built_anew(tiny_model: Path, tmp_path: Path) -> None:
    kinds = {"rgb8": "cam.raw", "bgr8": "", "mono8": "cam.bmp", "png": "cam.png"}
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        service = InspectionService(inspector)
        try:
            uploads = [sent(kind, part(number), name) for number, (kind, name) in enumerate(kinds.items())]
            for upload in uploads:
                asyncio.run(service.enroll("disc", upload))
            for again in (sent("png", part(0), "again.png"), sent("bgr8", part(3), "again.raw")):
                with pytest.raises(BankError, match="is enrolled already, as disc"):
                    asyncio.run(service.enroll("disc", again))
        finally:
            service.close()
    verify(tmp_path / "bank")
    bank = Bank.open(tmp_path / "bank")
    images = bank.classes["disc"].entry.images
    for upload, record in zip(uploads, images, strict=True):
        assert record.kept == f"{record.sha256}.png"
        kept = (tmp_path / "bank" / "images" / record.kept).read_bytes()
        rgb = decode(kept, record.kept, record.bit_depth)
        np.testing.assert_array_equal(rgb, to_rgb(upload.rgb) if upload.rgb.ndim == 2 else upload.rgb)
        assert (sha256_bytes(kept), pixel_digest(rgb)) == (record.sha256, record.pixels)
    assert [image.source for image in images] == ["cam.raw", "sent to visionad serve", "cam.bmp", "cam.png"]
    with Inspector.open(tiny_model, tmp_path / "new", threads=1) as inspector:
        rebuild_bank(bank, inspector)
        assert inspector.bank is not None
        assert [one.pixels for one in inspector.bank.classes["disc"].entry.images] == [one.pixels for one in images]


@pytest.mark.parametrize("start", [b"<", b"{", b"\x1f\x8b", b"a", b"data:", b"a=b", b"\x89PNG\n"])
def test_bare_pixels_of_another_size_are_no_other_file(start: bytes) -> None:
    """Whatever their values look like: who says that the body is pixels knows what it is."""
    body = (start * 1000)[:1000]
    with pytest.raises(ImageError, match=r"^the image: expected 10000 bytes for 100 x 100 pixels in mono8, got 1000$"):
        _decoded(body, "application/json", "", "mono8", 100, 100, None)
    with pytest.raises(ImageError, match=r"^the image: (expected an image, got a body that is|is a PNG whose)"):
        _decoded(body, "application/json", "", None, None, None, None)
