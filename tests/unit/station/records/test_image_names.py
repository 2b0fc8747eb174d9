"""Names of archived images: a camera whose name ends like another's is not taken for it."""

from __future__ import annotations

import pytest
from visionad_runtime.station.records.image_names import by_camera, image_name


@pytest.mark.parametrize("good", [True, False])
def test_each_image_is_its_own_cameras(good: bool) -> None:
    cameras = ("side-top", "top", "ok", "not-ok-top", "2-ok-x")
    paths = [f"/archive/2026-11-30/{image_name(12, good, camera)}" for camera in cameras]
    assert by_camera(paths) == dict(zip(cameras, paths, strict=True))


def test_other_files_are_left_out() -> None:
    assert by_camera(["/archive/users.json", "/archive/0000000001-top.png", ""]) == {}
