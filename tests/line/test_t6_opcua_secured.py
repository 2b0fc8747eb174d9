"""T6: encryption and passwords of the OPC UA server, with clients of asyncua and node-opcua, and what keeps it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.line import FakeLine
from tests.line.components import NPM_FOLDER, need
from tests.line.test_t6_opcua import Vision, need_server, running
from tests.ports import free_port

PASSWORD = "right"


@pytest.fixture(autouse=True)
def components() -> None:
    need_server()


def make_certificate(folder: Path, name: str, uri: str) -> None:
    """Write NAME.der and NAME.pem, a self-signed certificate and its key."""
    (folder / f"{name}.cnf").write_text(
        f"[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN={name}\n[ext]\n"
        f"subjectAltName=URI:{uri},IP:127.0.0.1,DNS:localhost\n"
        "keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment,keyCertSign\n"
        "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
    )
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-sha256", "-config", f"{name}.cnf"]
    words += ["-keyout", f"{name}.pem", "-outform", "DER", "-out", f"{name}.der"]
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def secured(folder: Path) -> dict[str, Any]:
    from visionad_runtime.station.sinks.opcua.users import hash_password

    need("openssl")
    need("yaml")
    make_certificate(folder, "station", "urn:plant:press-3")
    (folder / "users.yaml").write_text(f"plc: {hash_password(PASSWORD)}\n")
    return {"users": folder / "users.yaml", "certificate": folder / "station.der", "key": folder / "station.pem"}


def test_encrypted_with_password_and_no_other_way(tmp_path: Path) -> None:
    files = secured(tmp_path)
    make_certificate(tmp_path, "plc", "urn:plant:plc")

    async def attempt(address: str, user: str | None, password: str | None, encrypted: bool = True) -> bool:
        from asyncua import Client

        client = Client(address, timeout=15)
        client.application_uri = "urn:plant:plc"
        if user:
            client.set_user(user)
            client.set_password(password)
        if encrypted:
            await client.set_security_string(
                f"Basic256Sha256,SignAndEncrypt,{tmp_path}/plc.der,{tmp_path}/plc.pem,{tmp_path}/station.der"
            )
        async with client:
            vision = await Vision.of(client)
            return bool(await vision.flat("Reject"))

    async def scenario() -> None:
        from asyncua import ua

        async with running(FakeLine(), **files) as (_, address):
            assert await attempt(address, "plc", PASSWORD)
            for user, password in (("plc", "wrong"), ("nobody", PASSWORD)):
                with pytest.raises(ua.uaerrors.BadUserAccessDenied):
                    await attempt(address, user, password)
            assert await attempt(address, "plc", PASSWORD)  # known, although a wrong one came a moment ago
            with pytest.raises((ua.UaError, ConnectionError, TimeoutError)):
                await attempt(address, None, None)
            with pytest.raises((ua.UaError, ConnectionError, TimeoutError)):
                await attempt(address, "plc", PASSWORD, encrypted=False)

    asyncio.run(scenario())


NODE_CLIENT = Path(__file__).with_name("opcua_client.js")


def test_node_opcua_does_a_job(tmp_path: Path) -> None:
    need("node-opcua-client")
    files = secured(tmp_path)

    async def node(address: str, password: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            "node", NODE_CLIENT, address, str(tmp_path), password, env=os.environ | {"NODE_PATH": str(NPM_FOLDER / "node_modules")},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, err.decode()[-2000:]
        return dict(json.loads(next(line for line in out.decode().splitlines() if line.startswith("{"))))

    async def scenario() -> None:
        line = FakeLine()
        async with running(line, **files) as (_, address):
            assert "BadUserAccessDenied" in (await node(address, "wrong"))["refused"]
            await asyncio.sleep(1)  # after a wrong password the next is not computed at once
            got = await node(address, PASSWORD)
        assert got["recipe"][0] == "Good" and got["recipe"][2:] == [True, 0]
        assert got["state"] == "Ready"
        assert (got["job"][0], got["job"][1]["id"], got["job"][2]) == ("Good", "1", 0)
        assert got["flat"] == [2, "SN-bad", 0.457, False, True]
        assert got["result"] == ["Good", "SN-bad", 2, 0]

    asyncio.run(scenario())


def test_an_occupied_port_and_bad_files_are_one_line(tmp_path: Path) -> None:
    import socket

    from visionad_runtime.station.sink import SinkError
    from visionad_runtime.station.sinks.opcua.settings import OpcUaSettings
    from visionad_runtime.station.sinks.opcua.sink import OpcUaSink

    def start(**settings: Any) -> None:
        asyncio.run(asyncio.wait_for(OpcUaSink("plc", OpcUaSettings(kind="opcua", **settings)).run(FakeLine()), 60))

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SinkError, match="choose a free port"):
            start(port=taken.getsockname()[1], security="none")
    files = secured(tmp_path)
    with pytest.raises(SinkError, match=r"none\.der cannot be read"):
        start(**files | {"certificate": tmp_path / "none.der"})
    (tmp_path / "text.der").write_text("no certificate")
    with pytest.raises(SinkError, match="expected a certificate in DER"):
        start(port=free_port(), **files | {"certificate": tmp_path / "text.der"})
    (tmp_path / "users.yaml").write_text("plc: secret\n")
    with pytest.raises(SinkError, match="expected a hash for plc"):
        start(**files)
