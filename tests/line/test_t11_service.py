"""The station as a service: the unit file is sound, and the watchdog is fed only while the worker answers (T11)."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.records.records import Records

from tests.data import ROOT
from tests.line.components import need
from tests.stations import run, until
from tests.unit.station.front.test_front import port_of, station_file

__all__ = ["station_file"]
pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]  # serial: a watchdog is a matter of time
UNIT = ROOT / "examples" / "visionad-station.service"
MAX_EXPOSURE = 3.0
"""Largest exposure that `systemd-analyze security` may give, 0 (best) to 10."""


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    need("systemd-analyze")
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit file, with a command that exists here."""
    path = tmp_path / UNIT.name
    path.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text(), flags=re.MULTILINE)
    )
    return path


def test_the_unit_file_is_sound(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert said == [] and done.returncode == 0, done.stderr


def test_a_mistake_in_the_unit_file_is_seen(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=120", "WatchdgSec=120"))
    assert "WatchdgSec" in analyze("verify", "--man=no", str(unit)).stderr


def test_the_unit_file_gives_little_away(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None and float(found[1]) <= MAX_EXPOSURE, done.stdout + done.stderr


def test_what_the_unit_file_must_say() -> None:
    lines = UNIT.read_text().splitlines()
    for line in (
        "Type=notify",
        "DynamicUser=yes",
        "StateDirectory=visionad",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
    ):
        assert line in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket in the place of systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_the_watchdog_is_fed_only_while_the_worker_answers(station_file: Path, manager: socket.socket) -> None:
    heard: list[tuple[float, str]] = []

    async def listen() -> None:
        while True:
            try:
                heard.append((time.monotonic(), manager.recv(4096).decode()))
            except BlockingIOError:
                await asyncio.sleep(0.01)

    def fed(start: float, end: float) -> list[str]:
        return [text for moment, text in heard if start <= moment < end and text == "WATCHDOG=1"]

    async def play(front: Front) -> None:
        listening = asyncio.create_task(listen())
        await until(lambda: front.state.ready)
        await until(lambda: heard)
        assert heard[0][1] == "READY=1"
        await asyncio.sleep(1.0)
        assert len(fed(time.monotonic() - 1, time.monotonic())) >= 2
        first = front.worker_pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        stopped = time.monotonic()
        await until(lambda: front.worker_pid not in (None, first))
        assert fed(stopped + 1.6, time.monotonic()) == []  # it may have answered just before
        await until(lambda: front.state.ready)
        back = time.monotonic()
        await until(lambda: fed(back, time.monotonic()))
        listening.cancel()

    run(station_file, play)
    while True:
        try:
            heard.append((time.monotonic(), manager.recv(4096).decode()))
        except BlockingIOError:
            break
    texts = [text for _, text in heard]
    assert texts.count("READY=1") == 1 and texts.count("STOPPING=1") == 1
    assert set(texts) == {"READY=1", "WATCHDOG=1", "STOPPING=1"}


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from visionad_runtime.station.front.systemd import notify

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")  # a manager that is gone is no error


def test_only_the_state_folder_must_be_writable(station_file: Path) -> None:
    """As with ProtectSystem=strict, or a root file system that is mounted read-only: a part is judged and recorded."""
    need("bwrap")
    if subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let bwrap make a namespace")
    state = station_file.parent / "state"
    state.mkdir()
    text = station_file.read_text().replace("folder: archive,", "folder: state/archive,")
    station_file.write_text(text + "records: state/records.sqlite\nlog: state/station.log\n")
    port = port_of(station_file, "tcp")
    command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--bind", str(state), str(state), "--chdir", str(state)]
    code = "from visionad_runtime.cli.entry import main; main()"
    process = subprocess.Popen(
        [*command, sys.executable, "-c", code, "station", str(station_file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "HOME": str(state)},
    )  # fmt: skip
    try:
        _until_ready(port, process)
        answer = _inspect(port)
        assert answer.startswith("RESULT 1 1 "), answer
    finally:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)  # bwrap does not pass it on; to the front alone, as KillMode=mixed
        output = process.communicate(timeout=30)[0]
    assert "Traceback" not in output and process.returncode == 0, output
    records = Records(state / "records.sqlite")
    assert [row["part"] for row in records.parts()] == ["SN-1"]
    records.close()
    assert "worker-ready" in (state / "station.log").read_text()


def _inspect(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as channel:
        channel.sendall(b"TRIGGER 1 SN-1\n")
        return channel.makefile().readline()


def _until_ready(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as channel:
                channel.sendall(b"STATE\n")
                if channel.makefile().readline().startswith("STATE ready 1 "):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"it is not ready: {process.communicate()[0] if process.poll() is not None else 'no answer in time'}")
