"""What the work comes to (FLOPs, bytes), what this box can do (measured), and how much of that was reached.

The model is the roofline (Williams, Waterman, Patterson 2009): at ``I`` FLOPs a byte no program does more than
``min(peak FLOP/s, I · peak bytes/s)``. The peaks are of main memory: what stays in a cache between calls, as a tiny model does,
may pass the roof.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..._threads import available_cpus
from ...formats.manifest import FeatureIdentity
from ...scoring.product import scores_float32
from ...search import nearest

VITS: dict[str, tuple[int, int]] = {
    f"dinov2_vit{size}14{registers}": (1 + 4 * bool(registers), depth)
    for size, depth in (("s", 12), ("b", 12), ("l", 24))
    for registers in ("", "_reg")
} | {"deit_tiny_patch16_224": (1, 12)}
"""Backbone → tokens besides the patches (class token, registers), and its number of blocks. All have an MLP of 4 · dim."""


class Work(NamedTuple):
    """Floating-point operations (a multiply and an add are two) and the fewest bytes that must move."""

    flops: float
    bytes: float


class Peaks(NamedTuple):
    """Measured: FLOP/s of a large matrix product, bytes/s of a large copy (read and written), and how that was measured."""

    flops: float
    bytes: float
    method: str


def vit_flops(grid: int, extra: int, dim: int, blocks: int, patch: int) -> float:
    """FLOPs of a vision transformer for one image: its matrix products; norms, softmax and activations are not counted.

    With ``T = grid² + extra`` tokens of ``D = dim``, a block has queries, keys, values and the output (``8·T·D²``), the MLP
    of four times the width (``16·T·D²``), and attention's two products (``4·T²·D``). The patch embedding before the first block is
    ``2 · grid² · (3 · patch²) · D``.
    """
    tokens = grid * grid + extra
    block = (8 + 16) * tokens * dim**2 + 4 * tokens**2 * dim
    return float(2 * grid * grid * 3 * patch**2 * dim + blocks * block)


def backbone_work(identity: FeatureIdentity, weight_bytes: int, rows: int, class_token: bool) -> Work | str:
    """One view through the backbone, when ``rows`` views share a call: weights once a call, images in and tokens out in float32.

    Returns:
        Its :class:`Work`, or why that is not known.
    """
    if identity.kind != "vit" or identity.backbone not in VITS:
        return f"the FLOPs of {identity.backbone} are not known; counted for {', '.join(VITS)}"
    extra, depth = VITS[identity.backbone]
    blocks = depth if class_token and identity.class_token == "final" else identity.layers[-1] + 1
    flops = vit_flops(identity.grid, extra, identity.dim, blocks, identity.patch)
    out = identity.grid**2 * identity.dim + identity.class_token_dim * class_token
    return Work(flops, weight_bytes / rows + 4 * (3 * identity.preprocess.crop**2 + out))


def search_work(queries: int, rows: float, dim: int, size: int = 4) -> Work:
    """``queries`` patches against ``rows`` bank rows as one exhaustive product: ``2·P·N·D`` FLOPs, both read once, ``size`` bytes
    a number: 4 are float32, 2 the 16 bits that the GPU searches in.

    A search that rules rows out by their heads or in int8 does less; its FLOP/s by this count may then pass the float32 peak.
    """
    return Work(2.0 * queries * rows * dim, float(size) * (queries * dim + rows * dim) + 8.0 * queries)


def assess(work: Work, seconds: float, peaks: Peaks | None) -> dict[str, Any]:
    """FLOP/s reached in ``seconds``, and the share of the roof over this work; shares are ``None`` without peaks."""
    intensity = work.flops / work.bytes
    found: dict[str, Any] = {
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
        found["roof_gflop_per_s"] = round(roof / 1e9, 2)
        found["bound_by"] = "compute" if roof == peaks.flops else "memory"
        found["share_of_roof"] = round(work.flops / seconds / roof, 4)
    return found


def cpu_peaks(threads: int | None = None, side: int = 1024, copy_mb: int = 256, repeats: int = 5) -> Peaks:
    """The best of several float32 products (ONNX Runtime's, the search's) and of several copies, on all ``threads`` at once."""
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
            for _ in range(repeats + 1):  # the first warms up: it makes threads, pages and the product's session
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
    """The same on GPU 0 by torch, which is asked because it is the one library here that multiplies in every precision.

    Returns:
        The peaks in ``precision``, or why they cannot be measured.
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
