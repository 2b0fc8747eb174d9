"""Whether one remembered defect helps to catch further defects of its kind: `python benchmarks/defect_memory.py`.

A person confirms one missed defect. The patch tokens of its region, in the six poses, are remembered. A query patch that is
nearer to them than to any good patch gets a larger distance. The threshold is calibrated anew with the remembered defect, so
the promised false-reject rate stays. Then the further defects of that kind are scored, and fresh good parts.

A draw is a random bank of 4 supports, 19 held-out good parts for the threshold (at most 5 % false rejects), and the other good
parts as fresh ones. In each draw one defect of each kind is remembered, drawn from those that scored at most 1.1 times the
threshold. The threshold from leave-one-out scores of the supports (at most 20 %) is measured beside it.

Rule of the decision, fixed before the reporting sets were scored:

* The variant is chosen on two sets (``CHOOSING``): the largest gain, which is the additional fraction of further defects of the
  kind that are caught, averaged over both sets. Harmless variants come first. A variant is harmless on a set if the false-
  reject rate rises, and the defects caught of the kind and of other kinds fall, by at most a point.
* It is worth building if on two sets or more, of which at least one is a reporting set (``REPORTING``), the gain is at least 2
  points and its 95 % interval over draws is above 0, and if it is harmless on every set.
* The search with 1, 4 and 16 remembered defects takes at most 1.1 times the time without.

A first run remembered whole regions and searched them apart: 16 defects tripled the time of the search. Since then a defect has at
most ``MAX_CELLS`` cells, those farthest from the good patches, and one search covers good and remembered rows. Only patches nearest
to a remembered row are searched once more among the good ones. The intervals were made wider: draws that share a bank count as one.

The control ``elsewhere`` remembers as many random cells of the same image outside the region. It shows how much of a gain does not
come from the defect.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import good_parts
import numpy as np
from good_parts import SPEC, fast_score
from numpy.typing import NDArray
from visionad_runtime.images.decode import load
from visionad_runtime.preprocess import apply_pose, encoding_names, prepare, support_encodings, unrotated_index
from visionad_runtime.scoring.anomaly_map import top_k_mean, upsample
from visionad_runtime.scoring.conformal import conformal_limits
from visionad_runtime.search import build_index, nearest
from visionad_runtime.tools.evaluation.datasets.masks import load_mask
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset

if TYPE_CHECKING:
    from visionad_runtime import Inspector
    from visionad_runtime.tools.evaluation.datasets.base import Sample

CHOOSING, REPORTING = ("mvtec_bottle", "magnetic_tile"), ("adfi_hazelnut", "deeppcb")
POOL, SUPPORTS, HELD_OUT = 12, 4, 19
"""Good parts that banks are drawn from (they need all poses), size of a bank, parts that the threshold comes from."""
RATE, NEAR_THRESHOLD, DRAWS = 0.05, 1.1, 20
REMEMBERED = (1, 4, 16)
CELL_FRACTION = 0.25
"""Fraction of a cell's pixels under the mask that makes the cell part of the region."""
MAX_CELLS = 8
"""Cells that are remembered of a defect, so that 16 defects add 6 % to the rows of four supports."""
MIN_GAIN, MAX_LOSS, MAX_SEARCH_RATIO = 0.02, 0.01, 1.1
SEARCH_ROUNDS = 61

BLOCKS = encoding_names(SPEC.views)
POSES = [name.removeprefix("clamp/") for name in BLOCKS]
PCB_KINDS = {"1": "open", "2": "short", "3": "mousebite", "4": "spur", "5": "copper", "6": "pin-hole"}

F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Rule = Callable[[F32, F32], F32]
"""Distances of patches to the good patches and to the remembered ones → distances that are scored."""


def by_margin(a: float, good: F32, defect: F32) -> F32:
    """Add ``a`` times the margin by which the remembered defect is nearer."""
    return good + np.float32(a) * np.maximum(good - defect, 0)


def by_near_margin(a: float, b: float, good: F32, defect: F32) -> F32:
    """Do so only where the remembered defect is nearer than ``b`` times the nearest good patch."""
    return np.where(defect < np.float32(b) * good, by_margin(a, good, defect), good)


RULES: dict[str, Rule] = {
    **{f"margin × {a}": partial(by_margin, a) for a in (1, 2, 4)},
    **{f"margin × {a}, below {b} of the good distance": partial(by_near_margin, a, b)
       for b in (0.75, 0.5) for a in (2, 4)},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """Images of one class.

    Attributes:
        name: data set, and its class where it has several.
        good: number of good images G; they come first. The first ``POOL`` are the pool of supports.
        kinds: kinds of defect of each defective image.
        queries: float32 (N, P, D), unit rows: patch tokens of each image.
        poses: float32 (N - G, B, P, D): patch tokens of the defective images in all poses.
        regions: bool (N - G, side, side): cells under the mask; all False without masks.
        pairs: float32 (N, POOL, P): distance of each patch to each support of the pool alone.
        bank: float32 (SUPPORTS·B·P, D): rows of the first supports, to measure the search.
    """

    name: str
    good: int
    kinds: tuple[frozenset[str], ...]
    queries: F32
    poses: F32
    regions: Bool
    pairs: F32
    bank: F32

    @property
    def side(self) -> int:
        """Number of cells along a side of the map."""
        return self.regions.shape[1]


def samples(name: str) -> Iterator[tuple[str, list[Path], list[tuple[Sample, frozenset[str]]]]]:
    """Yield each class of a set: name, good images in random order, and defective images with their kinds."""
    dataset = open_dataset(good_parts.LAYOUTS[name], common.shared() / "data" / name)
    images = good_parts.good_images()
    for part in dataset.classes:
        title = name if len(dataset.classes) == 1 else f"{name}/{part}"
        order = np.random.default_rng(1).permutation(len(images[title]))
        defective = [(s, pcb_kinds(s) if s.boxes else frozenset({s.defect})) for s in dataset.test(part) if s.label]
        yield title, [images[title][i] for i in order], defective


def pcb_kinds(sample: Sample) -> frozenset[str]:
    """Return the kinds of the boxes of a DeepPCB board."""
    number = sample.path.parent.name
    boxes = sample.path.parents[1] / f"{number}_not" / f"{sample.path.name.removesuffix('_test.jpg')}.txt"
    return frozenset(PCB_KINDS[line.replace(",", " ").split()[4]] for line in boxes.read_text().splitlines() if line)


def cells_under(mask: Bool, side: int) -> Bool:
    """Return the cells of which enough pixels are under the mask, at least the one with most."""
    position = np.arange(len(mask)) * side // len(mask)
    counts = np.zeros((side, side))
    np.add.at(counts, (position[:, None], position[None, :]), mask)
    return counts >= min(CELL_FRACTION * (len(mask) / side) ** 2, max(counts.max(), 1))


def encode(title: str, good: Sequence[Path], defective: Sequence[tuple[Sample, frozenset[str]]], work: Path) -> Parts:
    """Encode the images, or read the tokens that an earlier run left in ``work``."""
    file = work / f"defects-{title.replace('/', '-')}.npz"
    if not file.exists():
        from visionad_runtime import Inspector

        with Inspector.open(work / "model", threads=1) as inspector:
            arrays = _encode(inspector, good, defective)
        with (part := file.with_suffix(".part")).open("wb") as out:
            np.savez(out, **arrays)
        part.replace(file)
    with np.load(file) as arrays:
        return Parts(title, len(good), tuple(kinds for _, kinds in defective), **dict(arrays))


def _encode(
    inspector: Inspector, good: Sequence[Path], defective: Sequence[tuple[Sample, frozenset[str]]]
) -> dict[str, NDArray[Any]]:
    spec, upright = inspector.manifest.identity.preprocess, unrotated_index(BLOCKS, SPEC.views[0])

    def tokens(path: Path, blocks: Sequence[str]) -> F32:
        return inspector.encode(support_encodings(prepare(load(path), spec), blocks)).patch

    pool = [tokens(path, BLOCKS) for path in good[:POOL]]
    others = [tokens(path, BLOCKS[upright : upright + 1])[0] for path in good[POOL:]]
    poses = np.stack([tokens(sample.path, BLOCKS) for sample, _ in defective])
    queries = np.stack([*(posed[upright] for posed in pool), *others, *poses[:, upright]])
    side = int(queries.shape[1] ** 0.5)
    masks = [load_mask(s, spec.resize, spec.crop) if s.has_mask else None for s, _ in defective]
    regions = np.stack([np.zeros((side, side), bool) if m is None else cells_under(m, side) for m in masks])
    pairs = np.stack([distances(queries, posed.reshape(-1, posed.shape[-1])) for posed in pool], axis=1)
    bank = np.concatenate([posed.reshape(-1, posed.shape[-1]) for posed in pool[:SUPPORTS]])
    return {"queries": queries, "poses": poses, "regions": regions, "pairs": pairs, "bank": bank}


def distances(queries: F32, rows: F32) -> F32:
    """Return the distance of each patch to the nearest row, float32 (N, P)."""
    return np.stack([1 - (query @ rows.T).max(axis=1) for query in queries])


def region_rows(parts: Parts, defect: int, cells: Bool) -> F32:
    """Return the patch tokens of a region of a defective image in all poses, float32 (R, D)."""
    return np.concatenate(
        [tokens[apply_pose(cells, pose).ravel()] for tokens, pose in zip(parts.poses[defect], POSES, strict=True)]
    )


def farthest(cells: Bool, good: F32) -> Bool:
    """Return at most ``MAX_CELLS`` of the cells, those with the largest distances, float32 (P,), to the good patches."""
    order = np.argsort(np.where(cells.ravel(), good, -1), kind="stable")[::-1]
    kept = np.zeros(cells.size, bool)
    kept[order[: min(MAX_CELLS, int(cells.sum()))]] = True
    return kept.reshape(cells.shape)


def hottest(grid: F32) -> Bool:
    """Return the cells that touch the pixels at or above the map's cutoff."""
    high = upsample(grid)
    return cells_under(high >= top_k_mean(high, SPEC.top_fraction)[1], len(grid))


def scores(patches: F32) -> NDArray[np.float64]:
    """Score images, (N, P) → (N,)."""
    return np.array([fast_score(distance[None]) for distance in patches])


def rescored(before: NDArray[np.float64], good: F32, scored: F32) -> NDArray[np.float64]:
    """Score images again, those whose distances have changed."""
    after, changed = before.copy(), (good != scored).any(axis=1)
    after[changed] = scores(scored[changed])
    return after


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one draw.

    Attributes:
        images: of all images against the bank.
        left_out: of its supports, leave-one-out.
    """

    images: NDArray[np.float64]
    left_out: NDArray[np.float64]

    def limit(self, held_out: NDArray[np.intp] | None) -> float:
        """Return the threshold from held-out parts, or from the supports."""
        calibration = self.left_out if held_out is None else self.images[held_out]
        return conformal_limits(calibration.tolist(), RATE, 0).anomalous.value


def measure(parts: Parts, rules: Mapping[str, Rule], regions: Collection[str]) -> dict[str, Any]:
    """Measure one class.

    Args:
        parts: its images.
        rules: variants by name.
        regions: how the region is found: ``mask``, which without masks is the same as ``cutoff``; ``cutoff``; ``elsewhere``.

    Returns:
        ``columns``: (kind, region, rule) → values of each draw; ``without miss``: draws without a missed defect, by kind.
    """
    rng, control = np.random.default_rng(0), np.random.default_rng(3)
    columns: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    without_miss: dict[str, int] = defaultdict(int)
    for draw in range(DRAWS):
        bank = rng.permutation(POOL)[:SUPPORTS]
        rest = rng.permutation(np.setdiff1d(np.arange(parts.good), bank))
        held_out, fresh = rest[:HELD_OUT], rest[HELD_OUT:]
        good = parts.pairs[:, bank].min(axis=1)
        left_out = np.stack([parts.pairs[s, np.setdiff1d(bank, s)].min(axis=0) for s in bank])
        before = Scores(scores(good), scores(left_out))
        limit = before.limit(held_out)
        for kind in sorted(frozenset().union(*parts.kinds)):
            of_kind = np.array([kind in kinds for kinds in parts.kinds])
            missed = np.flatnonzero(of_kind & (before.images[parts.good :] <= NEAR_THRESHOLD * limit))
            if not len(missed):
                without_miss[kind] += 1
                continue
            defect = int(rng.choice(missed))
            further = of_kind.copy()
            further[defect] = False
            distance = good[parts.good + defect]
            cells = {"cutoff": hottest(distance.reshape(parts.side, parts.side))}
            cells["mask"] = parts.regions[defect] if parts.regions[defect].any() else cells["cutoff"]
            cells = {region: farthest(where, distance) for region, where in cells.items()}
            elsewhere = control.permutation(np.flatnonzero(~(parts.regions[defect] | cells["mask"])))
            cells["elsewhere"] = np.zeros_like(cells["mask"])
            cells["elsewhere"].flat[elsewhere[: cells["mask"].sum()]] = True
            for region in regions:
                rows = region_rows(parts, defect, cells[region])
                near, near_left_out = distances(parts.queries, rows), distances(parts.queries[bank], rows)
                for name, rule in rules.items():
                    after = Scores(
                        rescored(before.images, good, rule(good, near)),
                        rescored(before.left_out, left_out, rule(left_out, near_left_out)),
                    )
                    values = {"rows": float(len(rows)), "draw": float(draw)}
                    for source, held in (("held-out", held_out), ("leave-one-out", None)):
                        for when, of in (("before", before), ("after", after)):
                            caught = of.images > of.limit(held)
                            found = caught[parts.good :]
                            values |= {
                                f"{source}, {when}: kind": float(found[further].mean()) if further.any() else np.nan,
                                f"{source}, {when}: others": float(found[~of_kind].mean())
                                if (~of_kind).any()
                                else np.nan,
                                f"{source}, {when}: false rejects": float(caught[fresh].mean()),
                            }
                    columns[kind, region, name].append(values)
    return {"name": parts.name, "good": parts.good, "columns": columns, "without miss": dict(without_miss)}


def measure_set(name: str, work: Path, rules: Mapping[str, Rule], regions: Collection[str]) -> list[dict[str, Any]]:
    """Measure the classes of a set, and summarise them: rows of (region, rule)."""
    results = [measure(encode(*of_class, work), rules, regions) for of_class in samples(name)]
    return [summary(name, results, region, rule) for region in regions for rule in rules]


def summary(name: str, results: Sequence[dict[str, Any]], region: str, rule: str) -> dict[str, Any]:
    """Summarise a variant on one set: means over draws of all kinds and classes, and 95 % intervals of the differences."""
    of_kind = {
        f"{result['name']}: {kind}": values
        for result in results
        for (kind, where, what), values in result["columns"].items()
        if (where, what) == (region, rule)
    }
    classes = {kind: number for number, kind in enumerate(dict.fromkeys(key.split(":")[0] for key in of_kind))}
    for kind, values in of_kind.items():
        for one in values:
            one["bank"] = classes[kind.split(":")[0]] * DRAWS + one["draw"]
    draws = [one for values in of_kind.values() for one in values]
    return {
        "set": name,
        "region": region,
        "rule": rule,
        "draws": len(draws),
        "draws without a missed defect": sum(sum(result["without miss"].values()) for result in results),
        "rows": float(np.mean([one["rows"] for one in draws])),
        **columns(draws),
        "kinds": {kind: {"draws": len(values), **columns(values)} for kind, values in of_kind.items()},
    }


def columns(draws: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return means before and after, and the mean difference with its 95 % interval; ``None`` where nothing is counted."""
    table: dict[str, Any] = {}
    banks = np.array([one["bank"] for one in draws])
    for source in ("held-out", "leave-one-out"):
        for what in ("kind", "others", "false rejects"):
            names = [f"{source}, {when}: {what}" for when in ("before", "after")]
            values = np.array([[one[name] for name in names] for one in draws])
            valid = ~np.isnan(values[:, 0])
            if not valid.any():
                table[f"{source}: {what}"] = None
                continue
            before, after = values[valid].T
            gain, error = float((after - before).mean()), clustered_error(after - before, banks[valid])
            table[f"{source}: {what}"] = {
                "before": float(before.mean()), "after": float(after.mean()),
                "gain": gain, "low": gain - error, "high": gain + error,
            }  # fmt: skip
    return table


def clustered_error(differences: NDArray[np.float64], banks: NDArray[np.float64]) -> float:
    """Return half the 95 % interval of the mean of differences, of which those that share a bank are not independent."""
    centered = differences - differences.mean()
    sums = np.array([centered[banks == bank].sum() for bank in np.unique(banks)])
    return 1.96 * float((sums**2).sum()) ** 0.5 / len(differences)


def gain(row: dict[str, Any], what: str, end: str = "gain") -> float:
    """Return a difference of a row with the threshold from held-out parts; 0 where nothing is counted."""
    cell = row[f"held-out: {what}"]
    return cell[end] if cell else 0.0


def harmless(row: dict[str, Any]) -> bool:
    """Return whether nothing gets worse by more than a point."""
    return (
        gain(row, "false rejects") <= MAX_LOSS and gain(row, "others") >= -MAX_LOSS and gain(row, "kind") >= -MAX_LOSS
    )


def helps(row: dict[str, Any]) -> bool:
    """Return whether further defects of the kind are caught."""
    return gain(row, "kind") >= MIN_GAIN and gain(row, "kind", "low") > 0


def choose(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the region and the rule with the largest gain on the sets that choose, the harmless ones first."""
    variants: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        variants[row["region"], row["rule"]].append(row)
    return max(
        variants,
        key=lambda v: (all(map(harmless, variants[v])), sum(gain(row, "kind") for row in variants[v])),
    )


def search_time(parts: Parts) -> list[dict[str, Any]]:
    """Measure the search of an image with remembered defects against the search without, one thread, pairs side by side."""
    rng = np.random.default_rng(2)
    queries, good = parts.queries[SUPPORTS : parts.good], parts.pairs[:, :SUPPORTS].min(axis=1)
    index, rows = build_index(parts.bank, queries[0], threads=1), []
    for count in REMEMBERED:
        drawn = rng.choice(np.flatnonzero(parts.regions.any(axis=(1, 2))), count, replace=False)
        defects = [region_rows(parts, int(d), farthest(parts.regions[d], good[parts.good + d])) for d in drawn]
        remembered = np.concatenate(defects)
        joint = build_index(np.concatenate([parts.bank, remembered]), queries[0], threads=1)
        ratios = []
        for query in queries[rng.integers(len(queries), size=SEARCH_ROUNDS)]:
            start = time.perf_counter()
            nearest(query, index, threads=1)
            middle = time.perf_counter()
            again = nearest(query, joint, threads=1).row >= len(parts.bank)
            if again.any():
                nearest(query[again], index, threads=1)
            ratios.append((time.perf_counter() - middle) / (middle - start))
        rows.append(
            {
                "remembered": count,
                "rows": len(remembered),
                "bank rows": len(parts.bank),
                "ratio": float(np.median(ratios)),
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/defect_memory.json``."""
    with good_parts.arguments(__doc__.splitlines()[0]) as (work, processes):
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            task = partial(measure_set, work=work, rules=RULES, regions=("mask", "cutoff"))
            chosen_on = [row for rows in pool.map(task, CHOOSING) for row in rows]
            region, rule = choose(chosen_on)
            chosen = partial(measure_set, work=work, rules={rule: RULES[rule]})
            reported = [row for rows in pool.map(partial(chosen, regions=(region,)), REPORTING) for row in rows]
            controls = pool.map(partial(chosen, regions=("elsewhere",)), (*CHOOSING, *REPORTING))
            control = [row for rows in controls for row in rows]
        search = search_time(encode(*next(samples(CHOOSING[0])), work))
    final = [row for row in chosen_on if (row["region"], row["rule"]) == (region, rule)] + reported
    helped = [row["set"] for row in final if helps(row)]
    catches = len(helped) >= 2 and bool(set(helped) & set(REPORTING)) and all(map(harmless, final))
    fast = all(row["ratio"] <= MAX_SEARCH_RATIO for row in search)
    for row in [*chosen_on, *reported, *control]:
        cells = (f"{what} {_percent(row[f'held-out: {what}'])}" for what in ("kind", "others", "false rejects"))
        print(f"{row['set']:14} {row['region']:9} {row['rule']:42} {', '.join(cells)}")
    for row in search:
        print(f"{row['remembered']:2} remembered, {row['rows']} rows: search {row['ratio']:.3f} times")
    print(f"chosen: {region}, {rule}; helps on {', '.join(helped) or 'no set'}; passes: {catches and fast}")
    facts = {
        "backbone": common.BACKBONE,
        "views": SPEC.views,
        "rate": RATE,
        "draws": DRAWS,
        "supports": SUPPORTS,
        "held-out": HELD_OUT,
        "cells": MAX_CELLS,
        "chosen": {"region": region, "rule": rule},
        "helps on": helped,
        "catches": catches,
        "fast": fast,
        "passes": catches and fast,
        "choosing": chosen_on,
        "reporting": reported,
        "control": control,
        "search": search,
    }
    print(f"written to {common.write('defect_memory', facts).relative_to(common.ROOT)}")


def _percent(cell: dict[str, float] | None) -> str:
    return (
        "–"
        if cell is None
        else f"{cell['before']:.1%} → {cell['after']:.1%} ({cell['low']:+.1%} to {cell['high']:+.1%})"
    )


if __name__ == "__main__":
    main()
