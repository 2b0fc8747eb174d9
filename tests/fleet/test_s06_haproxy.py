"""S6: two services behind HAProxy with the shipped configuration; one is killed and started again; no image is lost or wrong."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data import ROOT, part
from tests.fleet.components import note, program, releases
from tests.fleet.conftest import wait_for
from tests.fleet.servers import Service, inspected
from tests.ports import free_port

pytest.importorskip("fastapi", reason="serving takes the serve extra")
COUNT, CLIENTS = 500, 8


def test_s6_nothing_is_lost_when_a_server_dies(tiny_model: Path, filled_bank: Path) -> None:
    haproxy = program("haproxy")
    services = [Service(tiny_model, filled_bank), Service(tiny_model, filled_bank)]
    port = free_port()
    variables = {
        **os.environ,
        "VISIONAD_BIND": f"127.0.0.1:{port}",
        "VISIONAD_ONE": f"127.0.0.1:{services[0].port}",
        "VISIONAD_TWO": f"127.0.0.1:{services[1].port}",
    }
    proxy = subprocess.Popen([haproxy, "-f", ROOT / "deploy/haproxy.cfg"], env=variables, text=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/health/live", proxy)
        images = [part(seed, defect=seed % 4 == 0) for seed in range(10)]
        expected = [inspected(services[0].port, image) for image in images]
        done, lock, disturbed, restarted = 0, threading.Lock(), threading.Event(), threading.Event()

        def one(number: int) -> bool:
            nonlocal done
            if number >= COUNT * 3 // 4:  # slowly, so that the proxy sees the restarted server
                restarted.wait(120)
                time.sleep(0.2)
            answer = inspected(port, images[number % 10])
            with lock:
                done += 1
                if done > COUNT // 4:
                    disturbed.set()
            return answer == expected[number % 10]

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [pool.submit(one, number) for number in range(COUNT)]
            disturbed.wait(120)
            killed_at = done
            services[0].process.kill()
            services[0].process.wait()
            time.sleep(2)
            services.append(Service(tiny_model, filled_bank, services[0].port))
            restarted.set()
            wrong = [answer for answer in answers if not answer.result()]
        assert wrong == []
        text = services[2].ask("GET", "/metrics")[1].decode()
        by_restarted = sum(float(n) for n in re.findall(r"^visionad_pictures_total\{.*\} (\S+)$", text, re.MULTILINE))
        assert by_restarted > 0, "the restarted server took no part"
        assert inspected(services[2].port, images[0]) == expected[0]
        figures = {"images": len(answers), "wrong": len(wrong), "before_kill": killed_at}
        figures["by_restarted_server"] = int(by_restarted)
        note("S6", **figures, clients=CLIENTS, releases=releases("haproxy"))
    finally:
        proxy.terminate()
        proxy.wait(30)
        for service in services:
            if service.process.poll() is None:
                service.stop()


def test_the_configuration_is_valid() -> None:
    haproxy = program("haproxy")
    variables = {
        **os.environ,
        "VISIONAD_BIND": "127.0.0.1:1",
        "VISIONAD_ONE": "127.0.0.1:2",
        "VISIONAD_TWO": "127.0.0.1:3",
    }
    done = subprocess.run(
        [haproxy, "-c", "-f", ROOT / "deploy/haproxy.cfg"], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
