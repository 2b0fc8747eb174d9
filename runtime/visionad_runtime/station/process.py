"""What each process of a station does first: a name that ``ps`` and ``top`` show, the station file, the log."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

from .front.logs import start_logging
from .settings import Station, read_station


def begin_process(role: str, path: str, simulate: bool) -> Station:
    """Begin a process that the front has started, and return the station file.

    Args:
        role: added to the process's name, of which Linux keeps 15 letters, and to that of its log.
        path: station file.
        simulate: as ``visionad station --simulate``.

    Raises:
        VisionADError: The file has a mistake, or the log cannot be written.
    """
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"visionad-{role}")
    for name in ("SIGINT", "SIGHUP"):  # the terminal's Ctrl-C and its end are the front's business
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    station = read_station(Path(path), simulate=simulate)
    start_logging(station.settings.log, role)
    return station
