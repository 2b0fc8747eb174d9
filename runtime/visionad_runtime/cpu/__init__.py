"""The search as machine code for this CPU: which of the builds beside this file it can run, and how they are called.

They were compiled ahead of time from one C source (``docs/kernels.md``) and need no library, so a plain ``pip install`` has them
and the line PC no compiler. Where none fits, ``search.py`` does the same in NumPy.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import VisionADError
from ..workers import spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FOLDER = Path(__file__).parent


SYSTEMS = {"linux": "so", "win32": "dll", "darwin": "dylib"}
"""How a library's name ends under each system, as ``sys.platform`` names it."""


class Build(NamedTuple):
    """What a build runs on: a machine, the level that it asks of its CPU, and systems."""

    machine: str
    level: int = 1
    systems: tuple[str, ...] = tuple(SYSTEMS)


BUILDS = {
    # macOS keeps AVX-512's registers for those threads alone that have used them, so no CPU shows it there.
    "x86-64-v4": Build("x86_64", 4, ("linux", "win32")),
    "x86-64-v3": Build("x86_64", 3),
    "x86-64": Build("x86_64"),
    "aarch64": Build("aarch64"),
}
"""Best first, the last of a machine for any CPU of its kind. Names and levels are the x86-64 psABI's."""
STRETCH = 1024
"""Most bank rows of a piece of work. Many, so that turning the queries of its other side costs little (0.5 %); few enough that they
stay in the last cache, where every thread reads them again for other queries (1.5 MiB of 384 columns)."""
PIECES = 4
"""Pieces a thread, at least, so that threads end together."""
FEWEST_ROWS = 48
"""...but none of fewer rows than that."""


class _Search(ctypes.Structure):
    """``Search`` of ``search.c``."""

    _fields_ = (
        ("queries", ctypes.c_void_p), ("rows", ctypes.c_void_p), ("dim", ctypes.c_int64),
        ("head_queries", ctypes.c_void_p), ("head_rows", ctypes.c_void_p), ("head_dim", ctypes.c_int64),
        ("count", ctypes.c_int64), ("length", ctypes.c_int64), ("k", ctypes.c_int64), ("stretch", ctypes.c_int64),
        ("slack", ctypes.c_double), ("cut", ctypes.c_void_p), ("hard", ctypes.c_void_p),
        ("next", ctypes.c_int64), ("scored", ctypes.c_int64), ("broken", ctypes.c_int64),
    )  # fmt: skip


_ADDRESS, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "level": (_INTEGER,),
    "panel": (_INTEGER,),
    "scratch": (_INTEGER, _INTEGER),
    "search": (None, ctypes.POINTER(_Search), *[_ADDRESS] * 3),
    "merge": (None, *[_INTEGER] * 2, *[_ADDRESS] * 4),
    "product": (None, _ADDRESS, *[_INTEGER] * 2, _ADDRESS, *[_INTEGER] * 2, _ADDRESS),
    "exact": (None, *[_ADDRESS] * 2, _INTEGER, *[_ADDRESS] * 2, _INTEGER, _ADDRESS),
}
"""What each function returns and takes."""


class Found(NamedTuple):
    """The k best of each query: ``score`` float64 and ``row`` int64, (Q, k), best first. ``scored``: how many pairs took a float64
    score. ``finite``: whether all scores were; what is found means nothing if not."""

    score: F64
    row: I64
    scored: int
    finite: bool


class Library:
    """One build, loaded.

    Attributes:
        name: of :data:`BUILDS`.
        level: of this CPU under this system, as :data:`BUILDS` counts.
    """

    def __init__(self, name: str) -> None:
        """Load it.

        Raises:
            VisionADError: missing, damaged, or refused by the system.
        """
        self.name = name
        path = FOLDER / file_name(name, sys.platform)
        try:
            record = json.loads((FOLDER / "manifest.json").read_bytes())["builds"][path.name]
            if hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
                raise VisionADError(f"{path} is damaged; install visionad again")
            library = ctypes.CDLL(str(path))
            functions = [library[f"visionad_{name}"] for name in _ARGUMENTS]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise VisionADError(f"{path} cannot be loaded ({exc}); install visionad again") from None
        for function, (result, *arguments) in zip(functions, _ARGUMENTS.values(), strict=True):
            function.restype, function.argtypes = result, arguments
        level, panel, self._scratch, self._search, self._merge, self._product, self._exact = functions
        self.level, self._panel = int(level()), int(panel())

    def nearest(
        self, queries: F32, rows: F32, k: int, slack: float, threads: int, heads: tuple[F32, F32] | None = None
    ) -> Found:
        """The k best rows of each query by float64 score, of equal scores the lowest.

        Args:
            queries, rows: float32 (Q, D) and (N, D), C-contiguous, N >= k >= 1.
            slack: bound of the error of a float32 score, and by how much less than it a product of heads can be.
            threads: how many share the work. Nothing depends on it.
            heads: of queries and rows (:meth:`product`), to rule out most rows by. Nothing depends on them.
        """
        count, dim = queries.shape
        panels = -(-count // self._panel)
        parts = -(-len(rows) // STRETCH)
        if threads > 1 and panels:
            parts = max(parts, min(-(-PIECES * threads // panels), len(rows) // FEWEST_ROWS))
        stretch = -(-len(rows) // parts)
        cut = np.full(count, -np.inf, np.float32)
        score, row = np.empty((threads, count, k)), np.empty((threads, count, k), np.int64)
        scratch = np.empty((threads, self._scratch(dim)), np.uint8)
        hard = np.zeros(panels, np.bool_)
        head = (heads[0].ctypes.data, heads[1].ctypes.data, heads[0].shape[1]) if heads else (0, 0, 0)
        search = _Search(
            queries.ctypes.data, rows.ctypes.data, dim, *head, count, len(rows), k, stretch, slack, cut.ctypes.data,
            hard.ctypes.data, 0, 0, 0,
        )  # fmt: skip

        def work(thread: int) -> None:
            self._search(search, *(a[thread].ctypes.data for a in (score, row, scratch)))

        spread(work, range(threads), threads)
        for other in range(1, threads):
            self._merge(count, k, score.ctypes.data, row.ctypes.data, score[other].ctypes.data, row[other].ctypes.data)
        return Found(score[0], row[0], search.scored, not search.broken)

    def product(self, rows: F32, columns: F64, threads: int, *, heads: bool = False) -> F32:
        """``rows @ columns``, (N, W), summed in float64. What NumPy would do as well, in threads that are left spinning.

        Args:
            rows: float32 (N, D), C-contiguous.
            columns: float64 (D, W), C-contiguous, W a multiple of 8.
            threads: how many share the work.
            heads: give what :meth:`nearest` takes as heads. Then rows have length 1 within 0.1 %, and columns are orthonormal axes
                but for the last, which is zero: in its place comes the length of what the axes leave of a row, rounded up.
        """
        (count, dim), width = rows.shape, columns.shape[1]
        out = np.empty((count, width), np.float32)
        step = max(1, min(STRETCH, -(-count // (PIECES * threads))))

        def work(start: int) -> None:
            some = min(step, count - start)
            self._product(
                rows[start:].ctypes.data, some, dim, columns.ctypes.data, width, heads, out[start:].ctypes.data
            )

        spread(work, range(0, count, step), threads)
        return out

    def exact(self, queries: F32, rows: F32, query: I64, row: I64) -> F64:
        """Float64 score of each pair ``queries[query[i]]``, ``rows[row[i]]``; all C-contiguous."""
        score = np.empty(len(query))
        self._exact(
            queries.ctypes.data, rows.ctypes.data, queries.shape[1], query.ctypes.data, row.ctypes.data, len(query),
            score.ctypes.data,
        )  # fmt: skip
        return score


def file_name(name: str, system: str) -> str:
    """Of a build for a system, in this folder."""
    return f"{name}.{SYSTEMS[system]}"


def fitting(machine: str, system: str, level: int) -> list[str]:
    """Builds that a CPU can run, best first.

    Args:
        machine: ``x86_64``, ``aarch64`` or another.
        system: as ``sys.platform`` says.
        level: of the CPU (:attr:`Library.level`).
    """
    return [n for n, b in BUILDS.items() if b.machine == machine and system in b.systems and b.level <= level]


def machine() -> str:
    """What this process runs on, by Linux's name; empty if it is not a 64-bit one."""
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        return ""
    if sys.platform == "win32":  # may emulate one for a process, and then tells of the other
        return {"win-amd64": "x86_64", "win-arm64": "aarch64"}.get(sysconfig.get_platform(), "")
    name = platform.machine()
    return "aarch64" if name == "arm64" else name


def here() -> list[str]:
    """Builds that this CPU can run under this system, best first.

    Raises:
        VisionADError: the build for any CPU, which tells what the CPU is, cannot be loaded.
    """
    plain = fitting(machine(), sys.platform, 1)
    return fitting(machine(), sys.platform, Library(plain[0]).level) if plain else []
