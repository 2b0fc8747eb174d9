"""Stations, stores and keys that the tests of a fleet share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime import Inspector

from tests.data import part
from tests.fleet.components import begin, module
from tests.ports import free_port


def wait_for(
    url: str, process: subprocess.Popen[str] | None = None, seconds: float = 60, log: Path | None = None
) -> None:
    """Wait until a server answers, with any status. A failure ends with the last lines of ``log``."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            said = log.read_text(errors="replace")[-3000:] if log else ""
            assert process is None or process.poll() is None, f"the server has ended\n{said}"
            assert time.monotonic() < end, f"nothing answers at {url}\n{said}"
            time.sleep(0.1)


@pytest.fixture(autouse=True)
def clock() -> None:
    """Start the clock of the figures."""
    begin()


@pytest.fixture(scope="session")
def filled_bank(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two classes with thresholds. Read only."""
    folder = tmp_path_factory.mktemp("fleet") / "bank"
    with Inspector.open(tiny_model, folder, threads=1) as inspector:
        inspector.enroll("disc", [part(100 + i) for i in range(3)])
        inspector.enroll("grid", [part(200 + i, kind="grid") for i in range(3)])
    return folder


@pytest.fixture
def station(filled_bank: Path, tmp_path: Path) -> Path:
    """A bank that a test may change."""
    return shutil.copytree(filled_bank, tmp_path / "station" / "bank")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty bucket of a real S3 server on loopback (moto)."""
    module("moto")
    module("s3fs")
    port = free_port()
    log = open(tmp_path_factory.mktemp("moto") / "log", "w")  # noqa: SIM115 - closed with the process
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        wait_for(f"http://127.0.0.1:{port}/", process)
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/plant", method="PUT")).close()
        yield "s3://plant"
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
