"""Native code of the search: select a build in ``lib/`` that this CPU can run, and call it.

The builds are compiled ahead of time from one C source (``docs/kernels.md``) and need no other library. So ``pip install`` brings
them, and the line PC needs no compiler. Where no build runs, NumPy gives the same result.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._threads import parallel_for
from ..errors import VisionADError
from .numpy_search import F32, F64, I64, error_bound, search_numpy

FOLDER = Path(__file__).parent / "lib"

SYSTEMS = {"linux": "so", "win32": "dll"}
"""File name suffix of a library, by ``sys.platform``."""


class Build(NamedTuple):
    """Target of a build.

    Attributes:
        machine: CPU architecture.
        level: x86-64 level that the CPU must have.
        systems: operating systems, as ``sys.platform`` names them.
    """

    machine: str
    level: int = 1
    systems: tuple[str, ...] = ("linux",)


BUILDS = {
    "x86-64-v3": Build("x86_64", 3, ("linux", "win32")),
    "x86-64": Build("x86_64"),
    "aarch64": Build("aarch64"),
}
"""Builds, best first. Names and levels are those of the x86-64 psABI. Other systems and CPUs use NumPy."""

ROW_CHUNK = 1024
"""Maximum number of bank rows per chunk of work. Large enough that transposing the queries costs little (0.5 %), small enough that
the rows stay in the last-level cache, where every thread reads them again for other queries (1.5 MiB at 384 columns)."""
CHUNKS_PER_THREAD = 4
"""Minimum number of chunks per thread, so that all threads end at about the same time."""
MIN_CHUNK_ROWS = 48
"""Minimum number of bank rows per chunk. It takes precedence over :data:`CHUNKS_PER_THREAD`."""


class _Search(ctypes.Structure):
    """``Search`` of ``search.c``."""

    _fields_ = (
        ("queries", ctypes.c_void_p), ("rows", ctypes.c_void_p), ("dim", ctypes.c_int64),
        ("projected_queries", ctypes.c_void_p), ("projected_rows", ctypes.c_void_p), ("projected_dim", ctypes.c_int64),
        ("query_count", ctypes.c_int64), ("row_count", ctypes.c_int64), ("k", ctypes.c_int64), ("row_chunk", ctypes.c_int64),
        ("error_bound", ctypes.c_double), ("lower_bound", ctypes.c_void_p), ("unprunable", ctypes.c_void_p),
        ("next_chunk", ctypes.c_int64), ("rescored", ctypes.c_int64), ("not_finite", ctypes.c_int64),
    )  # fmt: skip


_ADDRESS, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "level": (_INTEGER,),
    "panel": (_INTEGER,),
    "scratch": (_INTEGER, _INTEGER),
    "search": (None, ctypes.POINTER(_Search), *[_ADDRESS] * 3),
    "merge": (None, *[_INTEGER] * 2, *[_ADDRESS] * 4),
    "product": (None, _ADDRESS, *[_INTEGER] * 2, _ADDRESS, *[_INTEGER] * 2, _ADDRESS),
}
"""Result type and argument types of each function."""


class NativeResult(NamedTuple):
    """The k best rows of each query.

    Attributes:
        score: float64 (Q, k), best first.
        row: int64 (Q, k), row numbers.
        rescored: number of pairs scored in float64.
        finite: ``False`` if any score was NaN or Inf. The other fields are meaningless then.
    """

    score: F64
    row: I64
    rescored: int
    finite: bool


class Library:
    """A loaded build.

    Attributes:
        name: key of :data:`BUILDS`.
        level: x86-64 level of this CPU under this system.
    """

    def __init__(self, name: str) -> None:
        """Load a build.

        Args:
            name: key of :data:`BUILDS`.

        Raises:
            VisionADError: The file is missing or damaged, or the system refuses to load it.
        """
        self.name = name
        path = FOLDER / file_name(name, sys.platform)
        try:
            record = json.loads((FOLDER / "manifest.json").read_bytes())["builds"][path.name]
            if hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
                raise VisionADError(f"{path} is damaged; install visionad again")
            library = ctypes.CDLL(str(path))
            functions = [library[f"visionad_{name}"] for name in _SIGNATURES]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise VisionADError(f"{path} cannot be loaded ({exc}); install visionad again") from None
        for function, (result, *arguments) in zip(functions, _SIGNATURES.values(), strict=True):
            function.restype, function.argtypes = result, arguments
        level, self._panel, self._scratch, self._search, self._merge, self._product = functions
        self.level = int(level())

    def nearest(
        self,
        queries: F32,
        rows: F32,
        k: int,
        error_bound: float,
        threads: int,
        projections: tuple[F32, F32] | None = None,
    ) -> NativeResult:
        """Find the k best rows of each query by float64 score. Ties go to the lowest row.

        Args:
            queries: float32 (Q, D), C-contiguous.
            rows: float32 (N, D), C-contiguous, N >= k >= 1.
            k: number of neighbors.
            error_bound: bound of the error of a float32 score, and of how far a product of projections can fall below the score.
            threads: number of threads. The result does not depend on it.
            projections: projections of queries and rows (:meth:`project`), which rule out most rows. The result does not depend on
                them.
        """
        count, dim = queries.shape
        panels = -(-count // int(self._panel()))
        chunks = -(-len(rows) // ROW_CHUNK)
        if threads > 1 and panels:
            chunks = max(chunks, min(-(-CHUNKS_PER_THREAD * threads // panels), len(rows) // MIN_CHUNK_ROWS))
        row_chunk = -(-len(rows) // chunks)
        lower_bound = np.full(count, -np.inf, np.float32)
        score, row = np.empty((threads, count, k)), np.empty((threads, count, k), np.int64)
        scratch = np.empty((threads, self._scratch(dim)), np.uint8)
        unprunable = np.zeros(panels, np.bool_)
        projected = (0, 0, 0)
        if projections:
            projected = (projections[0].ctypes.data, projections[1].ctypes.data, projections[0].shape[1])
        search = _Search(
            queries.ctypes.data, rows.ctypes.data, dim, *projected, count, len(rows), k, row_chunk, error_bound,
            lower_bound.ctypes.data, unprunable.ctypes.data, 0, 0, 0,
        )  # fmt: skip

        def work(thread: int) -> None:
            self._search(search, *(a[thread].ctypes.data for a in (score, row, scratch)))

        parallel_for(work, range(threads), threads)
        for other in range(1, threads):
            self._merge(count, k, score.ctypes.data, row.ctypes.data, score[other].ctypes.data, row[other].ctypes.data)
        return NativeResult(score[0], row[0], search.rescored, not search.not_finite)

    def product(self, rows: F32, columns: F64, threads: int) -> F32:
        """Return ``rows @ columns``, float32 (N, W), summed in float64.

        NumPy is not used, because threads of its OpenBLAS keep spinning and slow the searches that follow.

        Args:
            rows: float32 (N, D), C-contiguous.
            columns: float64 (D, W), C-contiguous, W a multiple of 8.
            threads: number of threads.
        """
        return self._multiply(rows, columns, threads, residual=False)

    def project(self, rows: F32, components: F64, threads: int) -> F32:
        """Return the projections of unit rows, float32 (N, W), as :meth:`nearest` takes them.

        A projection holds the coordinates along the components, then the length of the row's residual, rounded up.

        Args:
            rows: float32 (N, D), C-contiguous, of length 1 within 0.1 %.
            components: float64 (D, W), C-contiguous, W a multiple of 8, orthonormal except for the last, which is zero.
            threads: number of threads.
        """
        return self._multiply(rows, components, threads, residual=True)

    def _multiply(self, rows: F32, columns: F64, threads: int, *, residual: bool) -> F32:
        (count, dim), width = rows.shape, columns.shape[1]
        out = np.empty((count, width), np.float32)
        step = max(1, min(ROW_CHUNK, -(-count // (CHUNKS_PER_THREAD * threads))))

        def work(start: int) -> None:
            size = min(step, count - start)
            self._product(
                rows[start:].ctypes.data, size, dim, columns.ctypes.data, width, residual, out[start:].ctypes.data
            )

        parallel_for(work, range(0, count, step), threads)
        return out


@functools.cache
def native_library() -> tuple[Library | None, tuple[str, ...]]:
    """Return the build for this CPU, and why better builds are not used.

    A build is used only if it reproduces NumPy's results on this machine: a compiler or a hypervisor may get an instruction wrong.

    Returns:
        The loaded build, or ``None`` if NumPy is used; and one line for each build that should work but does not.
    """
    try:
        names = supported_builds()
    except VisionADError as exc:
        return None, (f"search: {exc}",)
    problems = []
    for name in names:
        try:
            library = Library(name)
        except VisionADError as exc:
            problems.append(f"search: {exc}")
            continue
        if _agrees_with_numpy(library):
            return library, tuple(problems)
        problems.append(
            f"search: the build {name} gives other neighbors than NumPy on this machine, so it is not used; please report it"
        )
    return None, tuple(problems)


def _agrees_with_numpy(library: Library) -> bool:
    """Return whether a build equals NumPy on rows with repeats and near-ties, at an odd width."""
    x = np.sin(np.arange(90 * 43, dtype=np.float64) ** 1.5).reshape(90, 43)
    x[30:60] = x[:1] + 1e-7 * x[30:60]
    x[60:] = x[20:50]
    rows = (x / np.sqrt((x * x).sum(axis=1, keepdims=True))).astype(np.float32)
    queries = np.concatenate([rows[::2], -rows[:5]])
    components = np.zeros((43, 16))
    components[:, :15] = np.linalg.qr(x[:15].T)[0]
    projections = library.project(queries, components, 1), library.project(rows, components, 1)
    for k in (1, 3):
        score, row = search_numpy(queries, rows, k)
        for projected in (None, projections):
            result = library.nearest(queries, rows, k, error_bound(43), 1, projected)
            if not (result.finite and np.array_equal(result.row, row) and np.array_equal(result.score, score)):
                return False
    return True


def file_name(name: str, system: str) -> str:
    """Return the file name of a build for a system."""
    return f"{name}.{SYSTEMS[system]}"


def compatible_builds(machine: str, system: str, level: int) -> list[str]:
    """Return the names of the builds that a CPU can run, best first.

    Args:
        machine: ``x86_64``, ``aarch64`` or another architecture.
        system: operating system, as ``sys.platform`` names it.
        level: x86-64 level of the CPU (:attr:`Library.level`).
    """
    return [
        name
        for name, build in BUILDS.items()
        if build.machine == machine and system in build.systems and build.level <= level
    ]


def process_machine() -> str:
    """Return the architecture of this process, as Linux names it, or an empty string if it is not 64-bit little-endian."""
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        return ""
    if sys.platform == "win32":  # `platform.machine` names the host, which may emulate x86-64 for this process
        return {"win-amd64": "x86_64"}.get(sysconfig.get_platform(), "")
    return platform.machine()


def supported_builds() -> list[str]:
    """Return the builds that this CPU can run under this system, best first.

    Raises:
        VisionADError: The most basic build of this machine and system, which reports the CPU's level, cannot be loaded.
    """
    builds = compatible_builds(process_machine(), sys.platform, max(build.level for build in BUILDS.values()))
    # The function that reports the level runs on any CPU, whatever the rest of the build needs.
    return compatible_builds(process_machine(), sys.platform, Library(builds[-1]).level) if builds else []
