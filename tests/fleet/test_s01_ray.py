"""S1: ``batch --on ray`` on a real cluster of two nodes in a network namespace; actor, driver, node and head are killed.

The namespace has a loopback device and nothing else, so what Ray would send to anybody else cannot leave, and a run that needed the
network would fail.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fleet.archives import COMMAND, predicted, write_images, written
from tests.fleet.components import missing, module, note, program, releases
from tests.ports import free_port

pytestmark = pytest.mark.slow(group="fleet")

COUNT = 160
KILLS = int(os.environ.get("VISIONAD_RAY_KILLS", "4"))
"""Kills that hit a run under way, shared by the four kinds of process; `make test-fleet` takes 20."""
KINDS = ("actor", "driver", "node", "head")
MISSES = 3
"""Runs of each kind that may end before they are hit."""
HEAD_SECONDS = 10
"""After which Ray gives up a head that is gone. Its default is 60; one test waits that long."""


class Cluster:
    """Processes in a network namespace of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.namespace.stdout is not None
        if self.namespace.stdout.readline() != "up\n":
            missing("a network namespace")
        (folder / "token").write_text("ab" * 32)
        self.port = free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.variables = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }

    def command(self, *command: object) -> list[str]:
        return ["nsenter", "-t", str(self.namespace.pid), "-n", *map(str, command)]

    def add_node(self, *, head: bool = False) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        where = (
            ["--head", f"--port={self.port}", "--include-dashboard=false"]
            if head
            else [f"--address=127.0.0.1:{self.port}"]
        )
        self.started += 1
        address = f"127.0.0.{self.started}"
        command = self.command(ray, "start", *where, f"--node-ip-address={address}", "--num-cpus=2", "--block")
        log = open(self.folder / f"node{self.started}.log", "w")  # noqa: SIM115 - lives as long as the node
        node = subprocess.Popen(command, env=self.variables, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        written, end_at = Path(log.name), time.monotonic() + 90
        while "Ray runtime started" not in written.read_text():
            assert node.poll() is None and time.monotonic() < end_at, written.read_text()[-2000:]
            time.sleep(0.2)
        return node

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = self.command(sys.executable, "-c", COMMAND, *arguments)
        return subprocess.Popen(
            command,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end_nodes(self) -> None:
        while self.nodes:
            node = self.nodes.pop()
            end(node.pid)
            node.wait()

    def interfaces(self) -> dict[str, int]:
        """Return the bytes that each network device of the namespace sent."""
        text = subprocess.run(self.command("cat", "/proc/net/dev"), capture_output=True, text=True, check=True).stdout
        fields = [line.replace(":", " ").split() for line in text.splitlines()[2:]]
        return {one[0]: int(one[9]) for one in fields}

    def close(self) -> None:
        self.end_nodes()
        end(self.namespace.pid)
        self.namespace.wait()


def end(pid: int) -> None:
    """Kill a process that a test started, and its children."""
    try:
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with_grace(one)
    except psutil.NoSuchProcess:
        return


def with_grace(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    module("ray")
    module("pyarrow")
    program("unshare")
    program("nsenter")
    if os.geteuid() != 0:
        missing("the root account, for a network namespace,")
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def actors(cluster: Cluster) -> list[psutil.Process]:
    """Return the processes of actors that inspect."""
    found = []
    for node in cluster.nodes:
        try:
            children = psutil.Process(node.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        for one in children:
            try:
                if "MapWorker" in " ".join(one.cmdline()):
                    found.append(one)
            except psutil.NoSuchProcess:
                continue
    return found


def strike(what: str, cluster: Cluster, driver: subprocess.Popen[str]) -> bool:
    """Kill one process of a run; return whether there was one."""
    if what == "driver":
        os.killpg(driver.pid, signal.SIGKILL)
    elif what == "actor":
        found = actors(cluster)[:1]
        for one in found:
            with_grace(one)
        return bool(found)
    else:
        node = cluster.nodes.pop(0 if what == "head" else -1)
        end(node.pid)
        node.wait()
    return True


@pytest.mark.parametrize("what", KINDS)
def test_s1_kills_lose_nothing(
    what: str, cluster: Cluster, tiny_model: Path, filled_bank: Path, tmp_path: Path
) -> None:
    images, rng = write_images(tmp_path / "images", COUNT), random.Random(what)
    expected = predicted(tiny_model, filled_bank, images)
    cluster.variables["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(HEAD_SECONDS)
    cluster.add_node(head=True)
    cluster.add_node()
    kills, turns, resumed, aim = 0, 0, 0, -(-KILLS // len(KINDS))
    lost, repeated, different = 0, 0, 0
    while kills < aim:
        out, turns = tmp_path / f"out{turns}", turns + 1
        assert turns <= aim + MISSES, f"{kills} of {turns - 1} runs were hit"
        address = f"ray://127.0.0.1:{cluster.port}"
        arguments = ["batch", tiny_model, filled_bank, images, "--out", out, "--block", "4", "--on", address]
        driver = cluster.start(*arguments)
        wait_for_rows(out, driver)
        time.sleep(rng.uniform(0, 0.5))
        hit = driver.poll() is None and strike(what, cluster, driver)
        kills += hit
        _, errors = driver.communicate(timeout=300)
        if hit and what == "head":
            cluster.end_nodes()
            cluster.add_node(head=True)
            cluster.add_node()
        if driver.returncode != 0:
            # Without a head, Ray itself ends the driver, with lines of its own.
            assert hit and (what == "driver" or "run again" in errors or (what == "head" and "GCS" in errors)), errors
            resumed += 1
            again = cluster.start(*arguments)
            _, errors = again.communicate(timeout=300)
            assert again.returncode == 0, errors
        rows, twice = written(out)
        lost, repeated = lost + len(expected.keys() - rows.keys()), repeated + twice
        different += sum(rows[name] != expected.get(name) for name in rows)
        assert (lost, repeated, different) == (0, 0, 0), f"after kill {kills} of a {what}"
        shutil.rmtree(out)
        if hit and what == "node":
            cluster.add_node()
    sent = cluster.interfaces()
    assert set(sent) == {"lo"}, "the namespace has a device that leads out"
    figures = {"kills": kills, "rows_each": len(expected), "run_again": resumed}
    figures |= {"lost": lost, "repeated": repeated, "different": different}
    note(f"S1 {what}", **figures, devices=sorted(sent), releases=releases("ray"))


def wait_for_rows(out: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until a run has written its first part, or has ended."""
    end_at = time.monotonic() + 120
    while not list(out.glob("run=*/part-*.parquet")) and driver.poll() is None and time.monotonic() < end_at:
        time.sleep(0.05)


@pytest.mark.skipif(
    KILLS < 20, reason="Ray waits a minute and a half for its head: at full length, VISIONAD_RAY_KILLS=20"
)
def test_s1_the_head_dies(cluster: Cluster, tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", COUNT), tmp_path / "out"
    head = cluster.add_node(head=True)
    arguments = ["batch", tiny_model, filled_bank, images, "--out", out, "--block", "4"]
    driver = cluster.start(*arguments, "--on", f"ray://127.0.0.1:{cluster.port}")
    wait_for_rows(out, driver)
    end(head.pid)
    driver.communicate(timeout=200)
    again = cluster.start(*arguments, "--workers", "1")
    _, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    rows, twice = written(out)
    assert twice == 0 and rows == predicted(tiny_model, filled_bank, images)


def test_s1_a_cluster_of_this_machine(tiny_model: Path, filled_bank: Path, tmp_path: Path, cluster: Cluster) -> None:
    """``--on ray`` starts its own cluster, and joins none by accident."""
    images, out = write_images(tmp_path / "images", 40), tmp_path / "out"
    cluster.variables["RAY_ADDRESS"] = "127.0.0.1:1"  # a trap: Ray would join it
    cluster.variables.pop("RAY_AUTH_MODE")
    driver = cluster.start("batch", tiny_model, filled_bank, images, "--out", out, "--block", "4", "--on", "ray")
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors
    assert written(out)[0] == predicted(tiny_model, filled_bank, images)
