"""Poll a station's registers as a PLC does, from a process of its own: ``python -m tests.browser.modbus_poll PORT SECONDS``.

Prints the 99th percentile of the answers, in milliseconds.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from contextlib import suppress

PAUSE_S = 0.01


def main(port: int, seconds: float) -> None:
    """Read 20 input registers again and again."""
    with suppress(OSError, AttributeError):  # a PLC is another computer: what this one computes does not delay it
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    times: list[float] = []
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plc:
        plc.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            begin = time.perf_counter()
            plc.sendall(struct.pack(">HHHBBHH", len(times) & 0xFFFF, 0, 6, 1, 4, 0, 20))
            if not plc.recv(512):
                raise SystemExit("the station closed the connection")
            times.append((time.perf_counter() - begin) * 1e3)
            time.sleep(PAUSE_S)
    times.sort()
    sys.stdout.write(f"{times[int(len(times) * 0.99)]}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
