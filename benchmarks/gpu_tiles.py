"""Tiles of the search kernel and settings of its second pass, timed on this GPU: `python benchmarks/gpu_tiles.py --out FILE`.

``TILES`` and ``variants`` of ``export/visionad_export/kernels/build.py`` hold the tile of each target and the settings of the
second pass. This benchmark compiles candidates (it needs Triton only), checks that each returns the rows of the built one, and
times whole searches in turns within one process by GPU time, as `gpu_search.py` does. A candidate that spills registers, or that
the assembler reports as slow, is listed and not timed.

The first pass of the built tile is then timed alone with its work distributed to the programs in other ways (:func:`deals`). This
separates the effect of programs that read the same bank rows at once from that of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_opponents import CACHE, I32, Contender, Ground, KernelSet, Rows, ours
from gpu_search import Size, draw, race
from visionad_runtime.cuda.interface import Device
from visionad_runtime.cuda.kernels import Kernel, Kernels, read_target
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import VisionADError
from visionad_runtime.system import environment

try:
    from visionad_export.kernels.build import TARGETS, TILES, Tile, compile_kernel
except ModuleNotFoundError as exc:
    sys.exit(f"gpu_tiles: compiling kernels needs {exc.name}: pip install 'visionad[export]'")

PASSES = "group_maxima", "rescore"
"""The kernels that a tile decides: the second pass reads the first one's maxima tile by tile."""
LIMITS = "registers", "shared_bytes", "per_multiprocessor"
"""Properties that are reported for each of them."""
CANDIDATES = [
    Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 3), Tile(128, 256, 32, 8, 4), Tile(256, 128, 64, 8, 4),
    Tile(256, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 32, 4, 4), Tile(128, 128, 32, 4, 3), Tile(64, 256, 64, 4, 4), Tile(64, 256, 32, 4, 4),
    Tile(64, 128, 64, 4, 4),
]  # fmt: skip
SECOND = [
    {"BLOCK_D": 128}, {"SCAN": 128}, {"SCAN": 512}, {"warps": 2}, {"warps": 4}, {"registers": 128}, {"registers": 168},
    {"registers": 255},
]  # fmt: skip
"""Of the second pass alone, with the built tile."""
SIZES = [Size(784, 500_000, 1024), Size(2352, 4704, 1024), Size(784, 500_000, 384), Size(2352, 4704, 384)]
"""Many rows, and three views of an image against one shot; of ViT-L and of ViT-S."""
BEYOND = max(tile.block_n for tile in CANDIDATES)
RUNS = 64, 16, 4
"""Tiles per item in the other distributions of work."""
CACHED = "always the same rows"
"""Not a search: every item reads the bank's first rows, so all but the first read them from the cache."""


class Candidate(NamedTuple):
    """A search to time: its name, its tile, what was changed, and the records and kernels of both passes."""

    name: str
    tile: Tile
    changes: Mapping[str, int]
    records: Mapping[str, Mapping[str, Any]]
    kernels: Mapping[str, Kernel]


def candidates(device: Device, kernels: Kernels, modules: ExitStack, refused: dict[str, str]) -> Iterator[Candidate]:
    """Yield every tile and every setting of the second pass that can be timed, the built ones first."""
    own, built = TILES[TARGETS[kernels.target]], read_target(kernels.target)
    yield Candidate(name_of(own), own, {}, {n: built[n][0] for n in PASSES}, {n: kernels[n] for n in PASSES})
    others: list[tuple[str, Tile, Mapping[str, int], Sequence[str]]] = [
        *((name_of(tile), tile, {}, PASSES) for tile in CANDIDATES if tile != own),
        *((f"second pass, {_told(changes)}", own, changes, PASSES[1:]) for changes in SECOND),
    ]
    for name, tile, changes, passes in others:
        new_kernels, records = {n: kernels[n] for n in PASSES}, {n: built[n][0] for n in PASSES}
        try:
            for kernel_name in passes:
                compiled = compile_kernel(kernel_name, kernels.target, tile, changes)
                if compiled.record["spill_bytes"] or not compiled.record["per_multiprocessor"]:
                    raise VisionADError(f"{kernel_name} spills {compiled.record['spill_bytes']} bytes, or does not fit")
                module = device.load(compiled.code)
                modules.callback(module.close)
                new_kernels[kernel_name] = Kernel(
                    kernel_name, compiled.record, module.function(compiled.record["entry"])
                )
                records[kernel_name] = compiled.record
        except Exception as exc:  # Triton's compiler fails in ways of its own
            refused[name] = str(exc).strip().partition("\n")[0][:200]
            continue
        yield Candidate(name, tile, changes, records, new_kernels)


def deals(items: I32, block_n: int) -> dict[str, I32]:
    """Ways to deal the first pass's work of one job to the programs, the planned one first, by name.

    As planned, the queries of one stretch of bank follow each other, so that programs side by side read it at about the same time;
    apart, the stretches of one tile of queries do, so that as few as can be read the same rows at once.
    """
    job, _, _, rows = items.max(axis=0)
    queries = np.unique(items[:, 1])

    def runs(length: int) -> I32:
        begin, query = np.meshgrid(np.arange(0, rows, length * block_n), queries, indexing="ij")
        end = np.minimum(begin + length * block_n, rows)
        return np.stack([np.full_like(begin, job), query, begin, end], axis=-1).reshape(-1, 4).astype(np.int32)

    def apart(items: I32) -> I32:
        return items[np.argsort(items[:, 1], kind="stable")]

    ways = {"as planned": items, "as planned, apart": apart(items)}
    for length in RUNS:
        some = runs(length)
        same = some.copy()
        same[:, 2:] -= some[:, 2:3]
        ways |= {f"{length} tiles": some, f"{length} tiles, apart": apart(some), f"{length} tiles, {CACHED}": same}
    return ways


def race_deals(
    size: Size, ground: Ground, kernels: KernelSet, bank: Rows, queries: Rows, seconds: float
) -> tuple[dict[str, float], list[str]]:
    """Median of the first pass dealt in each way, and with which ways the search finds other rows."""
    work = [(bank.view(0, size.rows), np.arange(size.queries, dtype=np.int32))]
    with ExitStack() as searches:
        first, search = searches.enter_context(ours(ground, queries, work, "planned", kernels))
        raced, others = list[Contender](), list[str]()
        for way, items in deals(search.plan.items, kernels["group_maxima"].constants["BLOCK_N"]).items():
            one, search = searches.enter_context(ours(ground, queries, work, way, kernels))
            search.deal(items)
            if CACHED not in way:
                search.run()
                ground.stream.synchronize()
                others += [way] if differ(first, one) else []
            raced.append(Contender(way, "events", partial(ground.timed, search.first_pass)))
        return {name: one["p50"] for name, one in race(raced, seconds).items()}, others


def _told(changes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def name_of(tile: Tile) -> str:
    """Format a tile as queries x rows x depth, warps, stages."""
    q, n, k, warps, stages = astuple(tile)
    return f"{q} x {n} x {k}, {warps} warps, {stages} stages"


def measure(device: Device, sizes: Sequence[Size], seconds: float, cache: int) -> dict[str, Any]:
    """The report."""
    refused: dict[str, str] = {}
    faults: list[str] = []
    wrong: set[str] = set()
    dealt: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        kernels = Kernels(device)
        stack.callback(kernels.close)
        ground = Ground(device, kernels, device.stream(), cache)
        stack.callback(ground.close)
        built = {name: kernels[name] for name in read_target(kernels.target)}
        entries = list(candidates(device, kernels, stack, refused))
        times: dict[str, dict[str, float]] = {one.name: {} for one in entries}
        raced = {one.name: {**built, **one.kernels} for one in entries}
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
                    if size.rows >= RUNS[0] * entries[0].tile.block_n:
                        dealt[str(size)], other = race_deals(
                            size, ground, raced[entries[0].name], bank, queries, seconds
                        )
                        faults += [f"{size}: {way} finds other rows" for way in other]
        return {
            "environment": environment(),
            "gpu": device.name,
            "capability": ".".join(map(str, device.capability)),
            "target": kernels.target,
            "built": entries[0].name,
            "best": min(set(times) - wrong, key=lambda name: math.prod(times[name].values())),
            "tiles": [
                {"name": one.name, "tile": asdict(one.tile), "changes": one.changes, "p50_ms": times[one.name]}
                | {name: {key: record[key] for key in LIMITS} for name, record in one.records.items()}
                for one in entries
            ],
            "first_pass_dealt_p50_ms": dealt,
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
        times = race(raced, seconds)
        return {name: one["p50"] for name, one in times.items()}, [r.name for r in raced[1:] if differ(raced[0], r)]


def differ(one: Contender, other: Contender) -> bool:
    """Return whether two searches found different rows or scores."""
    assert one.found is not None and other.found is not None
    return any((a != b).any() for a, b in zip(one.found(), other.found(), strict=True))


def told(report: Mapping[str, Any]) -> list[str]:
    """The table."""
    sizes = list(report["tiles"][0]["p50_ms"])
    lines = [f"{'':<36}{'regs':>10}{'shared':>8}{'fit':>6}" + "".join(f"{size:>24}" for size in sizes) + "   p50 ms"]
    for one in report["tiles"]:
        name = one["name"]
        note = " built" if name == report["built"] else ""
        ms = "".join(f"{one['p50_ms'][size]:>24.4g}" for size in sizes)
        registers, shared, fit = ([one[kernel][key] for kernel in PASSES] for key in LIMITS)
        both = f"{registers[0]:>6} {registers[1]:>3}{max(shared):>8}{fit[0]:>3} {fit[1]:>2}"
        lines.append(f"{name:<36}{both}{ms}{note}{' best' if name == report['best'] else ''}")
    for size, ways in report["first_pass_dealt_p50_ms"].items():
        lines += [f"first pass at {size}, dealt {way}: {ms:.4g} ms" for way, ms in ways.items()]
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
        report = DeviceThread.of(0).run(lambda device: measure(device, sizes, args.each, args.cache))
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
