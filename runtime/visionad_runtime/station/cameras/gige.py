"""GigE Vision cameras of any maker, by viva-genicam or by Aravis."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import ClassVar

from ..camera import CameraGone
from ..leaf import LeafSettings
from .acquisition import Device, DeviceGone, GenicamCamera
from .gige_settings import GigeSettings


class GigeCamera(GenicamCamera):
    """See :class:`~visionad_runtime.station.camera.Camera`."""

    Settings: ClassVar[type[LeafSettings]] = GigeSettings

    def __init__(self, name: str, settings: LeafSettings) -> None:
        assert isinstance(settings, GigeSettings)
        super().__init__(name, settings)
        self._settings = settings

    def missing(self) -> str | None:
        """See :class:`~visionad_runtime.station.camera.Camera`."""
        library = self._settings.library
        if library in ("auto", "viva") and find_spec("viva_genicam") is not None:
            return None
        if library in ("auto", "aravis") and sys.platform == "linux":
            from . import aravis

            if aravis.is_installed():
                return None
        if library == "aravis":
            return "Aravis 0.8 is not installed: apt-get install libaravis-0.8-0"
        other = "" if library == "viva" else ", or, where it has no wheel: apt-get install libaravis-0.8-0"
        return f"viva-genicam is not installed: pip install 'visionad[gige]'{other}"

    def _connect(self) -> Device:
        viva = self._settings.library != "aravis" and find_spec("viva_genicam") is not None
        try:
            if viva:
                from .viva import VivaDevice

                return VivaDevice(self._settings)
            from .aravis import AravisDevice

            return AravisDevice(self._settings)
        except DeviceGone as exc:
            raise CameraGone(f"camera {self._name}: {exc}") from None
