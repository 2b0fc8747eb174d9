"""Ports of the loopback interface for servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _TAKEN = 20_000, set[int]()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens at now, each time another one.

    It lies below those that the kernel gives to outgoing connections: a server may bind seconds later, and another test's
    connection would have taken its port by then.
    """
    lowest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.is_file() else 32_768
    for _ in range(1000):
        port = random.SystemRandom().randrange(_FIRST, lowest) if lowest > _FIRST + 1000 else 0
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            port = int(trial.getsockname()[1])
        if port not in _TAKEN:
            _TAKEN.add(port)
            return port
    raise AssertionError("no port of loopback is free")
