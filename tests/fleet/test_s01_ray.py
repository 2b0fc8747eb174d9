"""S1: ``batch --on ray`` on a real cluster of two nodes in a network namespace; actor, node, driver and head are killed.

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
from tests.fleet.components import module, program
from tests.fleet.conftest import free_port

pytestmark = pytest.mark.slow(group="fleet")

COUNT = 160
KILLS = int(os.environ.get("VISIONAD_RAY_KILLS", "4"))
"""Runs that are disturbed; 20 and more for the nightly test."""


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
            pytest.skip("no network namespace can be made here")
        (folder / "token").write_text("ab" * 32)
        self.port = free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []
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
        address = f"127.0.0.{len(self.nodes) + 1}"
        command = self.command(ray, "start", *where, f"--node-ip-address={address}", "--num-cpus=2", "--block")
        log = open(self.folder / f"node{len(self.nodes)}.log", "w")  # noqa: SIM115 - lives as long as the node
        node = subprocess.Popen(command, env=self.variables, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        time.sleep(12)
        assert node.poll() is None, (self.folder / f"node{len(self.nodes) - 1}.log").read_text()[-2000:]
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

    def close(self) -> None:
        for node in self.nodes:
            end(node.pid)
            node.wait()
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
        pytest.skip("a network namespace takes root")
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


def test_s1_kills_lose_nothing(cluster: Cluster, tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    images, rng = write_images(tmp_path / "images", COUNT), random.Random(1)
    expected = predicted(tiny_model, filled_bank, images)
    cluster.add_node(head=True)
    cluster.add_node()
    done = {"actor": 0, "driver": 0, "node": 0}
    for turn in range(KILLS):
        out = tmp_path / f"out{turn}"
        arguments = [
            "batch",
            tiny_model,
            filled_bank,
            images,
            "--out",
            out,
            "--block",
            "4",
            "--on",
            f"ray://127.0.0.1:{cluster.port}",
        ]
        what = ("actor", "driver", "node")[turn % 3]
        driver = cluster.start(*arguments)
        end_at = time.monotonic() + 120
        while not list(out.glob("run=*/part-*.parquet")) and driver.poll() is None and time.monotonic() < end_at:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
        if driver.poll() is None:
            done[what] += 1
            if what == "actor":
                for one in actors(cluster)[:1]:
                    with_grace(one)
            elif what == "driver":
                os.killpg(driver.pid, signal.SIGKILL)
            else:
                end(cluster.nodes.pop().pid)
        _, errors = driver.communicate(timeout=300)
        if driver.returncode != 0:
            assert what == "driver" or "run again" in errors, errors
            again = cluster.start(*arguments)
            _, errors = again.communicate(timeout=300)
            assert again.returncode == 0, errors
        rows, twice = written(out)
        assert (twice, rows == expected) == (0, True), f"after the kill of a {what}"
        shutil.rmtree(out)
        if what == "node":
            cluster.add_node()
    assert sum(done.values()) >= 1
    print(f"S1: kills {done}: {COUNT + 1} rows each, 0 lost, 0 twice, 0 differ")


def test_s1_the_head_dies(cluster: Cluster, tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", COUNT), tmp_path / "out"
    head = cluster.add_node(head=True)
    arguments = ["batch", tiny_model, filled_bank, images, "--out", out, "--block", "4"]
    driver = cluster.start(*arguments, "--on", f"ray://127.0.0.1:{cluster.port}")
    end_at = time.monotonic() + 120
    while not list(out.glob("run=*/part-*.parquet")) and driver.poll() is None and time.monotonic() < end_at:
        time.sleep(0.05)
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
