"""Compile ``search.c`` for every CPU, on any machine, into the runtime's package data.

The libraries are committed, as the GPU kernels are, because a line PC has no compiler. The compiler is Zig's clang: a wheel that
cross-compiles. Its output depends only on its version and the source.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visionad_runtime.errors import VisionADError
from visionad_runtime.search import native

SOURCE = Path(__file__).with_name("search.c")
FLAGS = (
    "-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast", "-fno-math-errno", "-fno-strict-aliasing",
    "-ffreestanding", "-nostdlib", "-fno-stack-protector", "-fvisibility=hidden", "-fPIC", "-shared", "-s", "-g0",
)  # fmt: skip
CPUS = {"x86-64-v3": "x86_64_v3", "x86-64": "x86_64", "aarch64": "generic"}
"""Build of the runtime -> CPU name of the compiler. Every 64-bit Arm CPU has NEON."""
SYSTEMS = {"linux": "linux-musl", "win32": "windows-gnu"}
"""System -> ABI name of the compiler. The libraries use no C library, in spite of the name."""
BUILDS = tuple((name, system) for name, build in native.BUILDS.items() for system in build.systems)


def compiler() -> str:
    """Return the installed compiler as the manifest names it.

    Raises:
        VisionADError: It is not installed.
    """
    try:
        return f"ziglang {importlib.metadata.version('ziglang')}"
    except importlib.metadata.PackageNotFoundError:
        raise VisionADError(
            "the search for CPUs is compiled by Zig, which is not installed: pip install 'visionad[dev]'"
        ) from None


def build(builds: Iterable[tuple[str, str]] = BUILDS) -> dict[str, bytes]:
    """Compile shared libraries.

    Args:
        builds: Pairs of a build and a system.

    Returns:
        File name -> library.

    Raises:
        VisionADError: The compiler is not installed, or it rejects the source.
    """
    compiler()
    built = {}
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        for name, system in builds:
            out = Path(scratch, native.file_name(name, system))
            target = f"-target {native.BUILDS[name].machine}-{SYSTEMS[system]} -mcpu={CPUS[name]}".split()
            command = [sys.executable, "-m", "ziglang", "cc", *target, *FLAGS, SOURCE.name, "-o", str(out)]
            done = subprocess.run(
                command, cwd=SOURCE.parent, env=os.environ | caches, capture_output=True, text=True
            )  # a relative path keeps paths of this machine out of the library
            if done.returncode:
                raise VisionADError(f"{SOURCE} for {out.name}: {done.stderr.strip()}")
            built[out.name] = out.read_bytes()
    return built


def manifest(built: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of the libraries."""
    return {
        "format": "visionad-cpu-search",
        "schema_version": 1,
        "source_sha256": hashlib.sha256(SOURCE.read_bytes() + Path(__file__).read_bytes()).hexdigest(),
        "compiler": compiler(),
        "builds": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in built.items()},
    }


def write(built: Mapping[str, bytes], folder: Path = native.FOLDER) -> None:
    """Write ``manifest.json`` and the libraries."""
    for name, library in built.items():
        (folder / name).write_bytes(library)
    (folder / "manifest.json").write_text(json.dumps(manifest(built), indent=1) + "\n")


def committed(folder: Path = native.FOLDER) -> dict[str, Any]:
    """Return the committed manifest."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return content


def check(built: Mapping[str, bytes], folder: Path = native.FOLDER) -> list[str]:
    """Compare the libraries in ``folder`` with what was built.

    Another compiler version compiles the same source to other bytes. Then only the source's digest is compared.

    Returns:
        One line per difference.
    """
    have, expected = committed(folder), manifest(built)
    lines = []
    if expected["source_sha256"] != have["source_sha256"]:
        lines = [f"{SOURCE.name}: expected source_sha256 {expected['source_sha256']}, got {have['source_sha256']}"]
    if expected["compiler"] != have["compiler"]:
        return lines
    for name, library in built.items():
        if have["builds"].get(name) != expected["builds"][name] or (folder / name).read_bytes() != library:
            lines.append(f"{name} differs from what {SOURCE.name} compiles to")
    return lines


def report(description: Mapping[str, Any]) -> str:
    """Return a table of the libraries and their sizes."""
    lines = [f"{'search':15} {'bytes':>7}"]
    lines += [f"{name:15} {record['bytes']:7}" for name, record in description["builds"].items()]
    lines.append(f"{description['compiler']}, source {description['source_sha256'][:12]}")
    return "\n".join(lines)
