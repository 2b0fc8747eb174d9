"""Compile the kernels for every GPU target, without a GPU, into the runtime's package data.

The binaries are committed, because a line PC has neither Triton nor a compiler. ``python -m visionad_export.kernels --check``
compiles again and compares, so the committed binaries are those of the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
import visionad_runtime.cuda
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from visionad_runtime.errors import VisionADError
from visionad_runtime.pipeline.cuda.work_tables import GROUP, MAX_NEIGHBOURS, RUN
from visionad_runtime.scoring.anomaly_map import MAP_SIZE
from visionad_runtime.scoring.self_similarity import EXCLUSION_RADIUS

SOURCE = Path(__file__).with_name("source.py")
PRODUCT = Path(visionad_runtime.cuda.__file__).parent / "cubins"


@dataclass(frozen=True)
class Tile:
    """Tile of the search kernel on one target: ``block_q`` queries × ``block_n`` bank rows × ``block_k`` columns.

    Attributes:
        block_q: Queries.
        block_n: Bank rows. A multiple of :data:`RUN`.
        block_k: Columns of a product's step.
        warps: Warps of a program.
        stages: Depth of the load pipeline.
    """

    block_q: int
    block_n: int
    block_k: int
    warps: int
    stages: int


SMALL = Tile(128, 128, 32, 4, 3)  # fits the 100 KiB of shared memory of sm_86, 89 and 120 twice
TILES = {
    80: Tile(128, 256, 64, 8, 3),
    86: SMALL,
    87: Tile(128, 128, 32, 4, 4),
    89: SMALL,
    90: Tile(128, 256, 64, 8, 4),  # wgmma
    100: Tile(128, 256, 64, 8, 4),  # tcgen05
    120: SMALL,
}
"""Compute capability -> tile, chosen by what fits. ``benchmarks/gpu_tiles.py`` times others on a GPU."""
SHARED_KIB = {80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 120: 100}
"""Compute capability -> shared memory of a multiprocessor. Each program takes 1 KiB more than it asks for."""
TARGETS: dict[str, int] = {**{f"sm_{cc}": cc for cc in TILES}, "ptx_89": 89}
"""Target -> compute capability: machine code for those listed, PTX for all others. PTX of 9.0 and later is for one architecture
only (``sm_90a`` and so on). PTX of 8.9 runs on every later GPU."""


@dataclass(frozen=True)
class Variant:
    """One kernel as compiled.

    Attributes:
        signature: Argument -> type, by Triton's names.
        constants: Compile-time constants.
        warps: Warps of a program.
        stages: Depth of the load pipeline.
        multiply_add: Whether the compiler may fuse multiply and add.
        aligned: Integer arguments that are multiples of 16. Pointers always are.
        registers: Maximum per thread, where more programs at once outweigh ptxas's choice.
    """

    signature: Mapping[str, str]
    constants: Mapping[str, int]
    warps: int = 4
    stages: int = 3
    multiply_add: bool = True
    aligned: tuple[str, ...] = ()
    registers: int | None = None


def variants(capability: int, tile: Tile | None = None) -> dict[str, Variant]:
    """Return every kernel that is built for a compute capability.

    Args:
        capability: Compute capability times 10, for example 89.
        tile: Tile of the search kernel. Default: that of :data:`TILES`.
    """
    tile = tile or TILES[capability]
    return {
        "pack": Variant(
            {"tokens": "*fp32", "packed": "*fp16", "norms": "*fp32", "rows": "i32", "dim": "i32", "width": "i32"},
            {"BLOCK": 512},
            aligned=("width",),
        ),
        "group_maxima": Variant(
            {
                "queries": "*fp16", "order": "*i32", "jobs": "*i64", "items": "*i32", "count": "*i32", "maxima": "*fp32",
                "width": "i32",
            },
            {"BLOCK_Q": tile.block_q, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "RUN": RUN, "GROUP": GROUP},
            tile.warps, tile.stages, aligned=("width",),
        ),
        "rescore": Variant(
            {
                "tokens": "*fp32", "norms": "*fp32", "order": "*i32", "job_of": "*i32", "jobs": "*i64", "bounds": "*fp32",
                "maxima": "*fp32", "distance": "*fp32", "row": "*i32", "dim": "i32", "width": "i32", "slack": "fp32", "k": "i32",
            },
            {
                "KEEP": MAX_NEIGHBOURS, "SCAN": 256, "BLOCK_N": tile.block_n, "RUN": RUN, "GROUP": GROUP, "BLOCK_D": 256,
                "ROW_D": 256,
            },
            warps=1, aligned=("width",), registers=144,
        ),
        "weigh_rarity": Variant(
            {"tokens": "*fp32", "distance": "*fp32", "side": "i32", "dim": "i32", "floor": "fp32"},
            {"BLOCK_Q": 16, "BLOCK_N": 64, "BLOCK_K": 32, "REACH": EXCLUSION_RADIUS},
        ),
        "resize_across": Variant(
            {"plans": "*i64", "tables": "*i32", "across": "*u8", "crop": "i32"}, {"BLOCK": 256},
        ),
        "resize_down": Variant(
            {
                "plans": "*i64", "tables": "*i32", "across": "*u8", "levels": "*fp32", "views": "*i32", "count": "i32",
                "images": "*fp32", "crop": "i32",
            },
            {"BLOCK": 256},
        ),
        "fuse_map": Variant(
            {
                "distance": "*fp32", "views": "*i32", "count": "i32", "low": "*i32", "part": "*fp32", "region": "*u8",
                "anomaly_map": "*fp32", "side": "i32",
            },
            {"SIZE": MAP_SIZE}, multiply_add=False,
        ),
        "top_mean": Variant(
            {"anomaly_map": "*fp32", "found": "*fp64", "top": "i32"},
            {"PIXELS": MAP_SIZE**2, "BLOCK": 8192}, warps=16, multiply_add=False,
        ),
    }  # fmt: skip


def changed(variant: Variant, changes: Mapping[str, int]) -> Variant:
    """Return a variant with other constants, warps, stages or registers."""
    constants = {name: changes.get(name, value) for name, value in variant.constants.items()}
    run = {name: value for name, value in changes.items() if name not in constants}
    return replace(variant, constants=constants, **run)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Built:
    """A compiled kernel.

    Attributes:
        code: The cubin, or PTX.
        record: Its record in the manifest.
    """

    code: bytes
    record: dict[str, Any]


def source_digest() -> str:
    """Return the sha256 of what decides the binaries besides Triton: the kernels' source and this file."""
    return hashlib.sha256(SOURCE.read_bytes() + Path(__file__).read_bytes()).hexdigest()


def compile_kernel(name: str, target: str, tile: Tile | None = None, changes: Mapping[str, int] | None = None) -> Built:
    """Compile one kernel for one target. The result is deterministic for a Triton version.

    Args:
        name: The kernel.
        target: A key of :data:`TARGETS`.
        tile: Another tile of the search kernel.
        changes: Other constants, ``warps``, ``stages`` or ``registers``.

    Raises:
        VisionADError: The runtime cannot launch the result, or the assembler reports a loss of performance.
    """
    from . import source

    if not isinstance(getattr(source, name), triton.JITFunction):
        raise VisionADError("Triton cannot compile kernels under TRITON_INTERPRET=1; unset it")
    capability = TARGETS[target]
    v = changed(variants(capability, tile)[name], changes or {})
    function = getattr(source, name)
    aligned = [n for n, t in v.signature.items() if t.startswith("*") or n in v.aligned]
    ast = ASTSource(
        function,
        {n: v.signature.get(n, "constexpr") for n in function.arg_names},
        dict(v.constants),
        {(function.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {
        "num_warps": v.warps, "num_stages": v.stages, "enable_fp_fusion": v.multiply_add, "maxnreg": v.registers,
    }  # fmt: skip
    knobs = triton.knobs
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True
        knobs.compilation.disable_line_info = True  # it would put paths of this machine into the binary
        knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(ast, target=GPUTarget("cuda", capability, 32), options=options)
    if "Potential Performance Loss" in log.getvalue():  # for example tensor core instructions that wait for each other
        raise VisionADError(
            f"{name} for {target}: ptxas reports {log.getvalue().strip().splitlines()[0]!r}; rewrite the kernel"
        )
    ptx = kernel.asm["ptx"]
    # the driver takes PTX as a C string
    code = ptx.encode() + b"\0" if target.startswith("ptx") else kernel.asm["cubin"]
    meta = kernel.metadata
    if meta.global_scratch_size or meta.profile_scratch_size or meta.num_ctas != 1:
        raise VisionADError(f"{name} for {target} needs scratch memory or clusters, which the runtime does not provide")
    threads, registers = 32 * meta.num_warps, _number(r"Used (\d+) registers", log.getvalue())
    record = {
        "entry": meta.name,
        "arguments": _abi(ptx, list(v.signature.values())),
        "threads": threads,
        "shared_bytes": meta.shared,
        "registers": registers,
        "per_multiprocessor": _programs_per_multiprocessor(capability, threads, registers, meta.shared),
        "spill_bytes": _number(r"(\d+) bytes spill stores", log.getvalue())
        + _number(r"(\d+) bytes spill loads", log.getvalue()),
        "constants": dict(v.constants),
        "tensor_cores": next((i for i in ("tcgen05.mma", "wgmma.mma_async", "mma.sync") if i in ptx), None),
        "sha256": hashlib.sha256(code).hexdigest(),
    }
    return Built(code, record)


def _programs_per_multiprocessor(capability: int, threads: int, registers: int, shared: int) -> int:
    """Return how many programs fit a multiprocessor at once, by registers (eight per thread at a time) and shared memory."""
    by_registers = 65536 // (threads * -(-registers // 8) * 8)
    return min(by_registers, SHARED_KIB[capability] * 1024 // (shared + 1024))


_PTX_TYPES = {"i32": "u32", "fp32": "f32"}


def _abi(ptx: str, types: list[str]) -> list[str]:
    """Return the argument types in order, after a check against the entry's parameters.

    Triton appends pointers to scratch memory that a kernel may need. These kernels need none, so the pointers are passed as 0.
    """
    parameters = re.findall(r"\.param \.(\w+)", ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))])
    arguments = ["pointer" if t.startswith("*") else t for t in types] + ["null"] * (len(parameters) - len(types))
    if parameters != [_PTX_TYPES.get(a, "u64") for a in arguments]:
        raise VisionADError(
            f"expected kernel parameters {arguments}, Triton {triton.__version__} compiled {parameters}"
        )
    return arguments


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise VisionADError(f"ptxas's log: expected {pattern!r}, got {text!r}")
    return int(match[1])


def build(target: str) -> dict[str, Built]:
    """Compile all kernels of a target, by name."""
    return {name: compile_kernel(name, target) for name in variants(TARGETS[target])}


def manifest(built: Mapping[str, Mapping[str, Built]]) -> dict[str, Any]:
    """Return the manifest of the binaries."""
    return {
        "format": "visionad-kernels",
        "schema_version": 1,
        "source_sha256": source_digest(),
        "triton": triton.__version__,
        "targets": {t: {n: b.record for n, b in kernels.items()} for t, kernels in built.items()},
    }


def write(built: Mapping[str, Mapping[str, Built]], folder: Path = PRODUCT) -> None:
    """Write ``manifest.json`` and one zip file per target."""
    folder.mkdir(exist_ok=True)
    for target, kernels in built.items():
        with zipfile.ZipFile(folder / f"{target}.zip", "w") as archive:
            for name, b in kernels.items():
                info = zipfile.ZipInfo(name)  # its default date, so that the archive depends only on the content
                archive.writestr(info, b.code, zipfile.ZIP_DEFLATED, 9)
    (folder / "manifest.json").write_text(json.dumps(manifest(built), indent=1) + "\n")


def committed(folder: Path = PRODUCT) -> dict[str, Any]:
    """Return the committed manifest."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return content


def check(built: Mapping[str, Mapping[str, Built]], folder: Path = PRODUCT) -> list[str]:
    """Compare the binaries in ``folder`` with what was built.

    Another Triton version compiles the same source to other bytes. Then only the source's digest is compared.

    Returns:
        One line per difference.
    """
    have = committed(folder)
    expected = manifest(built)
    lines = []
    if expected["source_sha256"] != have["source_sha256"]:
        lines = [f"source_sha256: expected {expected['source_sha256']}, got {have['source_sha256']}"]
    if expected["triton"] != have["triton"]:
        return lines
    for target, kernels in built.items():
        with zipfile.ZipFile(folder / f"{target}.zip") as archive:
            for name, b in kernels.items():
                if have["targets"].get(target, {}).get(name) != b.record or archive.read(name) != b.code:
                    lines.append(f"{target}/{name} differs from what the source compiles to")
    return lines


def report(description: Mapping[str, Any]) -> str:
    """Return a table of registers, shared memory and spills of every kernel on every target."""
    lines = [f"{'target':8} {'kernel':14} {'threads':>7} {'registers':>9} {'shared':>7} {'spilled':>7}  tensor cores"]
    for target, kernels in description["targets"].items():
        for name, r in kernels.items():
            numbers = f"{r['threads']:7} {r['registers']:9} {r['shared_bytes']:7} {r['spill_bytes']:7}"
            lines.append(f"{target:8} {name:14} {numbers}  {r['tensor_cores'] or '-'}")
    lines.append(
        f"Triton {description['triton']}, source {description['source_sha256'][:12]}; bytes of shared memory and spills"
    )
    return "\n".join(lines)
