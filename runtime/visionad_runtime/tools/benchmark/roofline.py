"""Roofline: FLOPs and bytes of the work, measured peaks of this machine, and the fraction reached.

Model: Williams, Waterman, Patterson 2009. At ``I`` FLOPs per byte no program exceeds ``min(peak FLOP/s, I · peak bytes/s)``. The
peaks are those of main memory. Work whose data stay in a cache between calls, as with a tiny model, may exceed the roof.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..._threads import available_cpus
from ...engine.base import CPU, NVIDIA_GPU
from ...engine.registry import backend_spec
from ...formats.manifest import FeatureIdentity, ModelManifest
from ...scoring.product import scores_float32
from ...search import nearest

NO_PEAKS = "the peaks of this device are not measured"
VITS: dict[str, tuple[int, int]] = {
    f"dinov2_vit{size}14{registers}": (1 + 4 * bool(registers), depth)
    for size, depth in (("s", 12), ("b", 12), ("l", 24))
    for registers in ("", "_reg")
} | {"deit_tiny_patch16_224": (1, 12)}
"""Backbone → number of tokens besides the patches (class token, registers), number of blocks. All have an MLP of 4 · dim."""


class Work(NamedTuple):
    """Cost of a computation.

    Attributes:
        flops: floating-point operations; a multiply and an add are two.
        bytes: the least bytes that must move.
    """

    flops: float
    bytes: float


class Peaks(NamedTuple):
    """Measured peaks.

    Attributes:
        flops: FLOP/s of a large matrix product.
        bytes: bytes/s of a large copy, read and written.
        method: how they were measured.
    """

    flops: float
    bytes: float
    method: str


def vit_flops(grid: int, extra: int, dim: int, blocks: int, patch: int) -> float:
    """Count the FLOPs of a vision transformer for one image. Only matrix products count.

    With ``T = grid² + extra`` tokens of ``D = dim``, a block has queries, keys, values and output (``8·T·D²``), an MLP of four
    times the width (``16·T·D²``), and attention's two products (``4·T²·D``). The patch embedding takes
    ``2 · grid² · (3 · patch²) · D``.

    Args:
        grid: patches along a side.
        extra: tokens besides the patches.
        dim: width of a token.
        blocks: number of transformer blocks.
        patch: side of a patch in pixels.
    """
    tokens = grid * grid + extra
    block = (8 + 16) * tokens * dim**2 + 4 * tokens**2 * dim
    return float(2 * grid * grid * 3 * patch**2 * dim + blocks * block)


def backbone_work(identity: FeatureIdentity, weight_bytes: int, rows: int, class_token: bool) -> Work | str:
    """Return the work of one view in the backbone. Weights are read once per call; images and tokens are float32.

    Args:
        identity: model.
        weight_bytes: bytes of the weights.
        rows: views per call.
        class_token: whether the class token is computed.

    Returns:
        The work, or the reason why it is not known.
    """
    if identity.kind != "vit" or identity.backbone not in VITS:
        return f"the FLOPs of {identity.backbone} are not known; counted for {', '.join(VITS)}"
    extra, depth = VITS[identity.backbone]
    blocks = depth if class_token and identity.class_token == "final" else identity.layers[-1] + 1
    flops = vit_flops(identity.grid, extra, identity.dim, blocks, identity.patch)
    out = identity.grid**2 * identity.dim + identity.class_token_dim * class_token
    return Work(flops, weight_bytes / rows + 4 * (3 * identity.preprocess.crop**2 + out))


def search_work(queries: int, rows: float, dim: int, size: int = 4) -> Work:
    """Return the work of a search as one exhaustive product: ``2·P·N·D`` FLOPs, both factors read once.

    A search that prunes rows by their projections does less. Its FLOP/s by this count may exceed the float32 peak.

    Args:
        queries: number of patches, P.
        rows: number of bank rows, N.
        dim: columns, D.
        size: bytes per number: 4 for float32, 2 for the 16 bits of the GPU's search.
    """
    return Work(2.0 * queries * rows * dim, float(size) * (queries * dim + rows * dim) + 8.0 * queries)


def assess(work: Work, seconds: float, peaks: Peaks | None) -> dict[str, Any]:
    """Compare a measured time with the roof.

    Args:
        work: the work.
        seconds: time that it took.
        peaks: peaks of the device; ``None`` leaves the roof out.

    Returns:
        JSON types: FLOP/s reached, roof, what bounds it, and the fraction of the roof (``None`` without peaks).
    """
    intensity = work.flops / work.bytes
    assessment: dict[str, Any] = {
        "gflop": round(work.flops / 1e9, 4),
        "mb": round(work.bytes / 1e6, 3),
        "flop_per_byte": round(intensity, 2),
        "gflop_per_s": round(work.flops / seconds / 1e9, 2),
        "roof_gflop_per_s": None,
        "bound_by": None,
        "share_of_roof": None,
    }
    if peaks is not None:
        roof = min(peaks.flops, intensity * peaks.bytes)
        assessment["roof_gflop_per_s"] = round(roof / 1e9, 2)
        assessment["bound_by"] = "compute" if roof == peaks.flops else "memory"
        assessment["share_of_roof"] = round(work.flops / seconds / roof, 4)
    return assessment


def cpu_peaks(threads: int | None = None, side: int = 1024, copy_mb: int = 256, repeats: int = 5) -> Peaks:
    """Measure the CPU's peaks: the best of several float32 products (ONNX Runtime's and the search's) and of several copies.

    Args:
        threads: CPU threads at once, ``None`` for all cores.
        side: side of the products.
        copy_mb: MiB of all copies together.
        repeats: how often each is timed.
    """
    threads = threads or available_cpus()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((side, side), np.float32)
    bank = np.tile(rows / np.linalg.norm(rows, axis=1, keepdims=True), (threads, 1))
    products = [(rows, rows.copy(), np.empty((side, side), np.float32)) for _ in range(threads)]
    count = copy_mb * 2**20 // 4 // threads
    copies = [(np.ones(count, np.float32), np.ones(count, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def best(work: Callable[[int], object]) -> float:
            times = []
            for _ in range(repeats + 1):  # the first warms up: it creates threads, pages and the product's session
                start = time.perf_counter()
                list(pool.map(work, range(threads)))
                times.append(time.perf_counter() - start)
            return min(times[1:])

        product = best(lambda i: scores_float32(*products[i]))
        search = best(lambda i: nearest(bank[:side], bank, threads=threads) if i == 0 else None)
        copy = best(lambda i: np.copyto(*copies[i]))
    return Peaks(
        threads * 2.0 * side**3 / min(product, search),
        2.0 * 4 * count * threads / copy,
        f"{threads} threads at once: float32 products of side {side} by ONNX Runtime or the search, whichever is faster, "
        f"copies of {copy_mb} MiB in all",
    )


def gpu_peaks(precision: str, side: int = 8192, repeats: int = 5) -> Peaks | str:
    """Measure the peaks of GPU 0 with torch, the only library here that multiplies in every precision.

    Args:
        precision: precision of the products.
        side: side of the matrices.
        repeats: how often each is timed.

    Returns:
        The peaks, or the reason why they cannot be measured.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        return "the GPU's peaks are measured by torch, which is not installed: pip install 'visionad[export]'"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    # Random: on ones or zeros few bits change, the GPU draws less power and clocks higher than on real data.
    a, b = (torch.randn((side, side), dtype=kind, device="cuda") for _ in range(2))
    out = torch.empty_like(a)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)) / 1e3)
        return min(times[1:])

    product, copy = best(lambda: torch.mm(a, b, out=out)), best(lambda: out.copy_(a))
    return Peaks(
        2.0 * side**3 / product,
        2.0 * a.numel() * a.element_size() / copy,
        f"torch {torch.__version__}: {precision} products and copies of side {side}",
    )


def add_roofline(report: dict[str, Any], model: Path, manifest: ModelManifest) -> None:
    """Add the roofline to a report: the engine at its fastest batch, and the search, against the peaks of their devices.

    Args:
        report: report of `visionad bench`; it gets ``peaks``, and each backend its ``roofline``.
        model: model folder.
        manifest: manifest of the model.
    """
    identity, settings = manifest.identity, report["settings"]
    cpu = cpu_peaks(settings["threads"])
    on_gpu = any(backend_spec(name).device == NVIDIA_GPU for name in report["backends"])
    gpu = gpu_peaks(manifest.precision) if on_gpu else "no backend here runs on a GPU"
    weights = sum(p.stat().st_size for p in model.glob("backbone.onnx*"))
    rows = report["bank"]["rows_per_view"]
    search_peaks, listed = gpu, {"cpu": cpu, "gpu": gpu}
    if manifest.precision != "fp16" and rows is not None and any(map(_pipeline_on_gpu, report["backends"].values())):
        # The GPU pipeline searches in 16 bits, whatever the model.
        search_peaks = listed["gpu, search"] = gpu_peaks("fp16")
    routed = report["pictures"]["class"] == "routed"
    views = len(report["views"])
    report["peaks"] = {
        where: {"gflop_per_s": round(p.flops / 1e9, 1), "gb_per_s": round(p.bytes / 1e9, 1), "how": p.method}
        if isinstance(p, Peaks)
        else {"gflop_per_s": None, "gb_per_s": None, "why_null": p}
        for where, p in listed.items()
    }
    for name, entry in report["backends"].items():
        peaks = _known({CPU: cpu, NVIDIA_GPU: gpu}.get(backend_spec(name).device, NO_PEAKS))
        if backend_spec(name).device == CPU and (entry["precision"] != manifest.precision or settings["device"]):
            peaks = None  # the CPU's peaks are those of the model's precision
        batch, best = min(entry["batches"].items(), key=lambda item: item[1]["bare_engine"]["p50"] / int(item[0]))
        seconds = best["bare_engine"]["p50"] / 1e3 / int(batch) / views
        work = backbone_work(identity, weights, entry["group"], routed)
        entry["roofline"] = {
            "engine, a view": {"why_null": work}
            if isinstance(work, str)
            else {"batch": int(batch), **assess(work, seconds, peaks)}
        }
        if rows is None:
            entry["roofline"]["search, all views"] = {
                "why_null": "no image is of a known class, so the searched rows are not known"
            }
        else:
            searched, size = (_known(search_peaks), 2) if _pipeline_on_gpu(entry) else (cpu, 4)
            parts = [search_work(identity.grid**2, n, identity.dim, size) for n in rows.values()]
            total = Work(sum(p.flops for p in parts), sum(p.bytes for p in parts))
            entry["roofline"]["search, all views"] = assess(
                total, entry["stages"]["pixels"]["search"]["p50"] / 1e3, searched
            )


def _pipeline_on_gpu(entry: dict[str, Any]) -> bool:
    return "wait" in entry["stages"]["pixels"]  # the host pipeline has no such stage


def _known(peaks: Peaks | str) -> Peaks | None:
    return peaks if isinstance(peaks, Peaks) else None
