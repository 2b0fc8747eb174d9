"""Tiles of the search kernel raced on this GPU: `python benchmarks/gpu_tiles.py --out FILE`.

Which one a target is built with stands in ``TILES`` of ``export/visionad_export/kernels/build.py``, by what fits. Here the
candidates are compiled (Triton is needed, nothing else), each must find what the built one finds, and whole searches are timed in
turns within one process, by GPU time, as `gpu_search.py` does. A candidate that spills registers, or of which the assembler says
that it will be slow, is told and not raced.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
from gpu_opponents import CACHE, Contender, Ground, KernelSet, Rows, ours
from gpu_search import Size, draw, race
from visionad_runtime.bench import box
from visionad_runtime.cuda.device import Owner
from visionad_runtime.cuda.interface import Device
from visionad_runtime.cuda.kernels import Kernel, Kernels, read_target
from visionad_runtime.errors import VisionADError

try:
    from visionad_export.kernels.build import TARGETS, TILES, Tile, compile_kernel
except ModuleNotFoundError as exc:
    sys.exit(f"gpu_tiles: compiling kernels needs {exc.name}: pip install 'visionad[export]'")

PASSES = "group_maxima", "rescore"
"""The kernels that a tile decides: the second pass reads the first one's maxima tile by tile."""
CANDIDATES = [
    Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 3), Tile(128, 256, 32, 8, 4), Tile(256, 128, 64, 8, 4),
    Tile(256, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 32, 4, 4), Tile(128, 128, 32, 4, 3), Tile(64, 256, 64, 4, 4), Tile(64, 256, 32, 4, 4),
    Tile(64, 128, 64, 4, 4),
]  # fmt: skip
SIZES = [Size(784, 500_000, 1024), Size(2352, 4704, 1024), Size(784, 500_000, 384), Size(2352, 4704, 384)]
"""Many rows, and three views of a picture against one shot; of ViT-L and of ViT-S."""
BEYOND = max(tile.block_n for tile in CANDIDATES)


def candidates(
    device: Device, kernels: Kernels, modules: ExitStack, refused: dict[str, str]
) -> Iterator[tuple[Tile, Mapping[str, Any], dict[str, Kernel]]]:
    """Each tile with its first pass's record and both passes, the built one first."""
    own = TILES[TARGETS[kernels.target]]
    yield own, read_target(kernels.target)[PASSES[0]][0], {name: kernels[name] for name in PASSES}
    for tile in CANDIDATES:
        if tile == own:
            continue
        made = {}
        try:
            built = {name: compile_kernel(name, kernels.target, tile) for name in PASSES}
            for name, one in built.items():
                if one.record["spill_bytes"] or not one.record["per_multiprocessor"]:
                    raise VisionADError(f"{name} spills {one.record['spill_bytes']} bytes, or does not fit")
                module = device.load(one.code)
                modules.callback(module.close)
                made[name] = Kernel(name, one.record, module.function(one.record["entry"]))
        except Exception as exc:  # Triton's compiler fails in ways of its own
            refused[name_of(tile)] = str(exc).strip().partition("\n")[0][:200]
            continue
        yield tile, built[PASSES[0]].record, made


def name_of(tile: Tile) -> str:
    """Queries x rows x depth, warps, stages."""
    q, n, k, warps, stages = astuple(tile)
    return f"{q} x {n} x {k}, {warps} warps, {stages} stages"


def measure(device: Device, sizes: Sequence[Size], seconds: float, cache: int) -> dict[str, Any]:
    """The report."""
    refused: dict[str, str] = {}
    faults: list[str] = []
    wrong: set[str] = set()
    with ExitStack() as stack:
        kernels = Kernels(device)
        stack.callback(kernels.close)
        ground = Ground(device, kernels, device.stream(), cache)
        stack.callback(ground.close)
        built = {name: kernels[name] for name in read_target(kernels.target)}
        entries = list(candidates(device, kernels, stack, refused))
        times: dict[str, dict[str, float]] = {name_of(tile): {} for tile, _, _ in entries}
        raced = {name_of(tile): {**built, **made} for tile, _, made in entries}
        for dim in dict.fromkeys(size.dim for size in sizes):
            here = [size for size in sizes if size.dim == dim]
            with ExitStack() as held:
                bank, queries = (
                    held.enter_context(
                        closing(Rows(device, kernels, ground.stream, count, dim, draw(dim, count, seed)))
                    )
                    for seed, count in enumerate((max(s.rows for s in here) + BEYOND, max(s.queries for s in here)))
                )
                for size in here:
                    found, other = race_at(size, ground, raced, bank, queries, seconds)
                    faults += [f"{size}: {name} finds other rows" for name in other]
                    wrong |= set(other)
                    for name, p50 in found.items():
                        times[name][str(size)] = p50
        return {
            "environment": box.environment(),
            "gpu": device.name,
            "capability": ".".join(map(str, device.capability)),
            "target": kernels.target,
            "built": name_of(entries[0][0]),
            "best": min(set(times) - wrong, key=lambda name: math.prod(times[name].values())),
            "tiles": [
                {"tile": asdict(tile), "p50_ms": times[name_of(tile)]}
                | {key: record[key] for key in ("registers", "shared_bytes", "per_multiprocessor")}
                for tile, record, _ in entries
            ],
            "refused": refused,
            "faults": faults,
        }


def race_at(
    size: Size, ground: Ground, tiles: Mapping[str, KernelSet], bank: Rows, queries: Rows, seconds: float
) -> tuple[dict[str, float], list[str]]:
    """Each tile's median at a size, and which of them find other rows than the first."""
    work = [(bank.view(0, size.rows), np.arange(size.queries, dtype=np.int32))]
    with ExitStack() as searches:
        raced = [searches.enter_context(ours(ground, queries, work, *tile))[0] for tile in tiles.items()]
        found = race(raced, seconds)
        return {name: one["p50"] for name, one in found.items()}, [r.name for r in raced[1:] if differ(raced[0], r)]


def differ(one: Contender, other: Contender) -> bool:
    """Whether two searches found other rows or scores."""
    assert one.found is not None and other.found is not None
    return any((a != b).any() for a, b in zip(one.found(), other.found(), strict=True))


def told(report: Mapping[str, Any]) -> list[str]:
    """The table."""
    sizes = list(report["tiles"][0]["p50_ms"])
    lines = [f"{'tile':<36}{'regs':>5}{'shared':>8}{'fit':>4}" + "".join(f"{size:>24}" for size in sizes) + "   p50 ms"]
    for one in report["tiles"]:
        name = name_of(Tile(**one["tile"]))
        note = " built" if name == report["built"] else ""
        ms = "".join(f"{one['p50_ms'][size]:>24.4g}" for size in sizes)
        numbers = f"{one['registers']:>5}{one['shared_bytes']:>8}{one['per_multiprocessor']:>4}"
        lines.append(f"{name:<36}{numbers}{ms}{note}{' best' if name == report['best'] else ''}")
    return lines + [f"not raced: {name}: {why}" for name, why in report["refused"].items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Race, print a table, write ``--out``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--each", type=float, default=0.2, help="seconds of GPU time of each tile at each size")
    options.add_argument("--cache", type=int, default=CACHE, help="bytes gone through before every search")
    options.add_argument("--size", type=int, nargs=3, action="append", metavar=("QUERIES", "ROWS", "DIM"))
    options.add_argument("--out", type=Path, help="JSON file")
    args = options.parse_args(argv)
    sizes = [Size(*size) for size in args.size] if args.size else SIZES
    try:
        report = Owner.of(0).run(lambda device: measure(device, sizes, args.each, args.cache))
    except VisionADError as exc:
        print(f"gpu_tiles: {exc}", file=sys.stderr)
        return 1
    print("\n".join(told(report)))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for fault in report["faults"]:
        print(f"gpu_tiles: {fault}", file=sys.stderr)
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
