"""The station as a service of a real systemd, in a container whose disk is this computer's with a layer over it (T11).

It takes root and a minute. `make test-line` runs it (``VISIONAD_LINE_SYSTEMD=1``); nothing of this computer is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import ROOT
from tests.line.components import need, note
from tests.ports import free_port
from tests.stations import teach, write_images, write_station

pytestmark = [pytest.mark.slow(group="line"), pytest.mark.serial]  # serial: a watchdog is a matter of time
UNIT = "visionad-station.service"
WATCHDOG_S = 20
BOOT = 'mount --make-rprivate / && mount --bind / "$0" && exec systemd-nspawn -D "$0" "$@"'
LAYER = ("--volatile=overlay", "--boot", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe")


class Machine:
    """A computer with systemd that shares disk and network with this one."""

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        (folder / "root").mkdir()
        binds = [f"--bind-ro={path}:{there}" for there, path in files.items()]
        command = ["unshare", "-m", "sh", "-c", BOOT, str(folder / "root"), *LAYER, *binds, "systemd.unit=basic.target"]
        self._log = (folder / "systemd.log").open("wb")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self._until(lambda: "running" in self.run("systemctl", "is-system-running") or "degraded" in self._said, 60)

    def run(self, *command: str, inside: int = 0) -> str:
        """Run a command there, or in the name spaces of one of its processes; return what it says."""
        spaces = ["-t", str(inside), "-m", "-p"] if inside else ["-t", str(self._leader()), "-a"]
        done = subprocess.run(["nsenter", *spaces, *command], capture_output=True, text=True, timeout=120)
        self._said, self.status = done.stdout + done.stderr, done.returncode
        return self._said.strip()

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "--value", "-p", name, UNIT)

    def front(self) -> int:
        """Return the process number of the front, as this computer counts."""
        own = int(self.show("MainPID"))
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = re.search(r"^NSpid:\s+(.*)$", status.read_text(), re.MULTILINE)
            except OSError:
                continue  # it ended
            if numbers and own and numbers[1].split()[1:] == [str(own)]:
                return int(numbers[1].split()[0])
        raise AssertionError(f"the service has no process {own}: {self.run('journalctl', '-n', '50', '-u', UNIT)}")

    def close(self) -> None:
        """Power it off."""
        self.run("systemctl", "poweroff")
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._log.close()

    def _leader(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else self._process.pid

    def _until(self, done: object, seconds: float) -> None:
        end = time.monotonic() + seconds
        assert callable(done)
        while not done():
            assert time.monotonic() < end and self._process.poll() is None, Path(self._log.name).read_text()
            time.sleep(0.2)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def machine(tiny_model: Path, tmp_path: Path, port: int) -> Iterator[Machine]:
    """A computer with the service of `examples/`, whose watchdog is shorter, and a station file."""
    if os.environ.get("VISIONAD_LINE_SYSTEMD") != "1":
        pytest.skip("it takes root, and boots a systemd: VISIONAD_LINE_SYSTEMD=1, as `make test-line` sets")
    need("systemd-nspawn", "nsenter", "chrt")
    if any(ROOT.is_relative_to(home) or Path(sys.prefix).is_relative_to(home) for home in ("/home", "/root")):
        pytest.skip(f"a service sees no home folders, and the project lies in {ROOT}")
    etc = tmp_path / "visionad"
    etc.mkdir()
    teach(tiny_model, etc / "bank")
    shutil.copytree(tiny_model, etc / "model")
    write_images(etc / "images")
    more = "records: /var/lib/visionad/records.sqlite\nack_ms: 100"
    write_station(etc, Path("model"), "  top: {kind: folder, path: images}", f"  - {{kind: tcp, port: {port}}}", more)
    program = tmp_path / "visionad.sh"
    code = "import sys; from visionad_runtime.cli.entry import main; sys.exit(main())"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    text = (ROOT / "examples" / UNIT).read_text()
    unit = tmp_path / UNIT
    unit.write_text(text.replace("WatchdogSec=120", f"WatchdogSec={WATCHDOG_S}"))
    assert unit.read_text() != text
    files = {"/etc/visionad": etc, "/opt/visionad/bin/visionad": program, f"/etc/systemd/system/{UNIT}": unit}
    machine = Machine(tmp_path, files)
    yield machine
    machine.close()


def judge(port: int, sequence: int) -> str:
    """Trigger a part, and return its result."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plc, plc.makefile("rw", newline="\n") as lines:
        lines.write(f"TRIGGER {sequence} SN-{sequence}\n")
        lines.flush()
        while not (line := lines.readline()).startswith(("RESULT", "ERROR")):
            assert line, "the station closed the connection"
        lines.write(f"ACK {sequence}\n")
        lines.flush()
        return line.split()[0]


def policies(front: int) -> dict[str, int]:
    """Scheduling policy of the front and of its children."""
    children = [int(p) for t in Path(f"/proc/{front}/task").iterdir() for p in (t / "children").read_text().split()]
    found = {f"child {pid}": os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK for pid in children}
    return {"front": os.sched_getscheduler(front) & ~os.SCHED_RESET_ON_FORK, **found}


def test_t11_a_real_systemd_starts_watches_and_stops_the_station(machine: Machine, port: int) -> None:
    begun = time.monotonic()
    machine.run("systemctl", "start", UNIT)  # returns after READY=1
    started = time.monotonic() - begun
    assert machine.status == 0 and machine.show("SubState") == "running", machine.run("journalctl", "-u", UNIT)
    assert judge(port, 1) == "RESULT"

    front = machine.front()
    found = policies(front)
    assert found.pop("front") == os.SCHED_RR and found and set(found.values()) == {os.SCHED_OTHER}
    for place, writable in (("/opt/x", False), ("/etc/visionad/x", False), ("/var/lib/visionad/x", True)):
        machine.run("touch", place, inside=front)
        assert (machine.status == 0) == writable, place

    os.kill(front, 19)  # SIGSTOP: nothing feeds the watchdog
    stopped = time.monotonic()
    while machine.show("NRestarts") != "1" or machine.show("SubState") != "running":
        assert time.monotonic() < stopped + WATCHDOG_S + 60, machine.run("journalctl", "-u", UNIT)
        time.sleep(0.2)
    restarted = time.monotonic() - stopped
    assert "watchdog" in machine.run("journalctl", "-u", UNIT).lower()
    assert machine.front() != front and judge(port, 2) == "RESULT"

    begun = time.monotonic()
    machine.run("systemctl", "stop", UNIT)
    ended = time.monotonic() - begun
    assert machine.show("Result") == "success" and machine.show("ActiveState") == "inactive"
    figures = {"start_s": started, "watchdog_s": WATCHDOG_S, "back_after_s": restarted, "stop_s": ended}
    note("T11", {name: round(value, 2) for name, value in figures.items()})
    assert ended < 1, figures
