"""A service that was started with ``--evidence``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime import Inspector
from visionad_runtime.visualization.overlay import overlay_png
from visionad_runtime.web import answers
from visionad_runtime.web.queue import UploadedImage
from visionad_runtime.web.service import InspectionService

from tests.data import part


def test_the_service_gives_evidence_if_it_is_asked_to(tiny_model: Path, tmp_path: Path) -> None:
    rgb = np.ascontiguousarray(part(7, defect=True)[..., ::-1])
    upload = UploadedImage(rgb, "part.png", b"")
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(0), part(1)])
        for evidence in (False, True):
            service = InspectionService(inspector, evidence)
            try:
                result = asyncio.run(service.inspect(upload, "disc"))
                overlay = service.overlay(upload, result)
            finally:
                service.close()
            regions = result.to_dict("part.png")["regions"]
            assert regions and all((region["evidence"] is not None) == evidence for region in regions)
            assert (overlay == overlay_png(rgb, result)) != evidence
            for region in regions:
                answers.Region.model_validate(region)
