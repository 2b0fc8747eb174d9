"""Settings of GigE Vision cameras."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Literal

from pydantic import Field

from .features import GenicamSettings

CONTROL_PRIVILEGE = 0x0A00
"""Register of GigE Vision that is 0 while nobody controls the camera."""


class GigeSettings(GenicamSettings):
    """Settings of a GigE Vision camera.

    Attributes:
        address: IPv4 address of the camera.
        library: ``viva`` (viva-genicam), ``aravis`` (Aravis 0.8), or ``auto``: viva where it is installed, otherwise Aravis.
        interface: name or address of the host's network interface; by default the one that routes to the camera. Viva only.
        packet_size: bytes of a packet of the stream, headers included; by default the camera's.
        packet_delay_us: pause between two packets in microseconds; by default the camera's. Cameras that share a link need it.
    """

    address: IPv4Address
    library: Literal["auto", "viva", "aravis"] = "auto"
    interface: str | None = None
    packet_size: int | None = Field(default=None, ge=220, le=16404)
    packet_delay_us: float | None = Field(default=None, ge=0, le=1_000_000)
