"""Settings of the OPC UA sink."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ...leaf import LeafSettings


class OpcUaSettings(LeafSettings):
    """Settings of an OPC UA sink.

    Attributes:
        host: address that the server listens on; it is part of the endpoint's address, so clients must be able to use it.
        port: TCP port.
        security: ``sign_and_encrypt`` (Basic256Sha256, users with passwords) or ``none`` (anonymous and unencrypted).
        users: YAML file of users and password hashes.
        certificate: DER file of the server's certificate.
        key: PEM file of its key.
        auto_acknowledge: whether a result counts as acknowledged once its event is sent. OPC 40100-1 has no acknowledgement: set it
            if no other sink acknowledges and the client does not call ``Acknowledge``.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=4840, ge=1, le=65535)
    security: Literal["sign_and_encrypt", "none"] = "sign_and_encrypt"
    users: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    auto_acknowledge: bool = False

    @model_validator(mode="after")
    def _files(self) -> OpcUaSettings:
        files = {"users": self.users, "certificate": self.certificate, "key": self.key}
        if self.security == "none":
            if any(files.values()):
                raise ValueError("expected no users, certificate and key with security: none")
            return self
        absent = [name for name, path in files.items() if path is None]
        if absent:
            raise ValueError(f"expected {', '.join(absent)} too, or security: none for a server that anybody may use")
        # asyncua tells the formats apart by these endings.
        if self.certificate and self.certificate.suffix != ".der":
            raise ValueError(f"expected a certificate with the ending .der, got {self.certificate}")
        if self.key and self.key.suffix != ".pem":
            raise ValueError(f"expected a key with the ending .pem, got {self.key}")
        return self
