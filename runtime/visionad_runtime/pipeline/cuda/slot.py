"""A slot of the CUDA executor: one stream with its buffers and recorded graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._threads import available_cpus, parallel_for
from ...cuda.interface import Buffer, Device, DeviceEngine, Graph
from ...cuda.memory import ResourceScope
from ...errors import VisionADError
from ...images.pixels import copy_pixels
from ...scoring.anomaly_map import MAP_SIZE
from ...scoring.self_similarity import MIN_DISTANCE
from ...search import BROKEN_TOKENS
from . import work_tables
from .outputs import Encoded, ExecutorOutput, Views
from .shared import SharedBuffers
from .work_tables import ImagePlan, SearchPlan

F32 = NDArray[np.float32]
COPY_BYTES, MAX_COPY_THREADS = 1 << 20, 4
"""Bytes of an image that a thread copies at a time, and the maximum of threads.

One thread would take longer for a large image than the GPU's own copy.
"""
ROW_PROGRAMS = 512
"""Programs per image that share the rows of the first resize pass."""


class _Layout:
    """Arrays at fixed offsets of one buffer, in page-locked memory and on the device, that are copied together."""

    def __init__(
        self, resources: ResourceScope, fields: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
    ) -> None:
        self._offsets: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            self._offsets[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 256) * 256
        self.host: NDArray[np.uint8] = resources.pinned(end, np.uint8)
        self.host[...] = 0
        self.buffer = resources.alloc(end)
        self.arrays: dict[str, NDArray[Any]] = {
            name: self.host[self._offsets[name] :][: int(np.prod(shape)) * np.dtype(dtype).itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (shape, dtype) in fields.items()
        }

    def address(self, name: str) -> int:
        """Return the device address of an array."""
        return self.buffer.ptr + self._offsets[name]


def _copy_rows(to: NDArray[np.uint8], source: NDArray[np.uint8], step: int, end: int, start: int) -> None:
    stop = min(start + step, end)
    copy_pixels(to[start:stop], source[start:stop])


@dataclass(frozen=True)
class _Host:
    """Page-locked results. ``scores`` (rows, 2): score and cutoff."""

    cls: F32
    distance: F32
    maps: F32
    scores: NDArray[np.float64]


class Slot:
    """One stream with its buffers and graphs.

    The holder of ``lock`` stages inputs and reads results. Everything else runs on the owner thread.

    Attributes:
        lock: Held during a call.
        ticket: Counts encodings, so that an :class:`Encoded` can tell whether its tokens are still there.
        resources: Owns the buffers.
        stream: The slot's stream.
        done: Event behind the last work.
        host: Results of the last work.
    """

    def __init__(self, device: Device, shared: SharedBuffers) -> None:
        self._device, self._shared = device, shared
        self.lock = threading.Lock()
        self.ticket = 0
        self.resources = ResourceScope(device)
        self._stages: list[str] = []
        self._graphs: dict[tuple[str, int, Views], tuple[int, Graph]] = {}
        self._views: dict[Views, Buffer] = {}
        self._last: tuple[int, Views] = (0, ())  # images and views of the last encoding
        try:
            self._allocate()
        except BaseException:
            self.resources.close()
            raise

    def _allocate(self) -> None:
        device, shared = self._device, self._shared
        alloc, pinned, own = self.resources.alloc, self.resources.pinned, self.resources.own
        self.stream = self.resources.stream(device.stream())
        self.done = own(device.event())
        stages = ("start", "upload", "preprocess", "engine", "search", "map", "download")
        self._events = {name: own(device.event()) for name in stages}
        identity, rows, crop, patches = shared.identity, shared.max_rows, shared.spec.crop, shared.patches
        height, width = shared.max_image
        self._image_bytes = -(-height * width * 3 // 256) * 256
        self._host_pixels = pinned((rows, self._image_bytes), np.uint8)
        self._pixels = alloc(rows * self._image_bytes)
        self._table_size = work_tables.table_size(height, width, shared.spec)
        self._sizes: list[tuple[int, ...]] = [()] * rows
        self._rows = [(0, 0)] * rows  # rows of the images that the crop needs
        self._staged = [slice(0)] * rows  # and their bytes
        self._search_plan: SearchPlan | None = None
        self._plans_changed = self._search_changed = self._regions_changed = False
        self._plans = _Layout(
            self.resources,
            {"plans": ((rows, work_tables.IMAGE_COLUMNS), np.int64), "tables": ((rows, self._table_size), np.int32)},
        )  # fmt: skip
        self._across = alloc(rows * height * 3 * crop)
        self._images = alloc(4 * rows * 3 * crop * crop)
        self._patch = alloc(4 * rows * patches * identity.dim)
        self._cls = alloc(4 * rows * identity.class_token_dim)
        self._packed = alloc(2 * rows * patches * shared.width)
        self._norms = alloc(8 * rows * patches)
        queries = rows * patches
        self._search = _Layout(
            self.resources,
            {
                "order": ((queries,), np.int32), "job_of": ((queries,), np.int32),
                "jobs": ((rows, work_tables.JOB_COLUMNS), np.int64),
                "bounds": ((rows, 2), np.float32), "count": ((1,), np.int32),
                "items": ((work_tables.max_items(queries, rows, shared.block_q, shared.programs), 4), np.int32),
            },
        )  # fmt: skip
        self._distance, self._row = alloc(4 * queries), alloc(4 * queries)
        self._maps, self._scores = alloc(4 * rows * MAP_SIZE**2), alloc(16 * rows)
        self._host_region = pinned((rows, MAP_SIZE, MAP_SIZE), np.uint8)
        self._host_region[...] = 1
        self._region = alloc(rows * MAP_SIZE**2)
        device.upload(self._region, self._host_region, self.stream)
        self.stream.synchronize()
        self._masked = False
        self.host = _Host(
            pinned((rows, identity.class_token_dim), np.float32), pinned((rows, patches), np.float32),
            pinned((rows, MAP_SIZE, MAP_SIZE), np.float32), pinned((rows, 2), np.float64),
        )  # fmt: skip

    # -- on the caller's thread, which holds the lock: the owner thread is for short work only --------------------------

    def stage_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        """Copy the rows that the crop needs to page-locked memory.

        Args:
            rgbs: uint8 images (H, W, 3) or (H, W).
        """
        for index, rgb in enumerate(rgbs):
            if self._sizes[index] != rgb.shape:
                self._describe(index, rgb)
            first, end = self._rows[index]
            line = rgb.nbytes // len(rgb)
            self._staged[index] = slice(first * line, end * line)
            image = self._host_pixels[index, : rgb.nbytes].reshape(rgb.shape)
            step = max(1, COPY_BYTES // line)
            workers = min(MAX_COPY_THREADS, available_cpus(), (end - first) // step)
            if workers < 2:
                copy_pixels(image[first:end], rgb[first:end])
            else:
                starts = range(first, end, step)
                parallel_for(partial(_copy_rows, image, rgb, step, end), starts, workers)

    def _describe(self, index: int, rgb: NDArray[np.uint8]) -> None:
        """Write the plan of how to resize an image at a place of the batch."""
        self._plans_changed = True  # until the plans are on the device
        spec = self._shared.spec
        plan = ImagePlan.of(rgb.shape[0], rgb.shape[1], rgb.shape[2] if rgb.ndim == 3 else 1, spec)
        self._plans.arrays["tables"][index, : len(plan.tables)] = plan.tables
        self._plans.arrays["plans"][index] = plan.columns(
            self._pixels.ptr + index * self._image_bytes,
            index * self._table_size,
            index * self._shared.max_image[0] * 3 * spec.crop,
        )
        self._sizes[index], self._rows[index] = rgb.shape, (plan.top, plan.top + plan.rows)

    def stage_search(self, search: SearchPlan, regions: Sequence[NDArray[np.bool_] | None] | None) -> None:
        """Write the search's work tables and the maps' regions, if they changed since the last call.

        Args:
            search: The work tables.
            regions: Per image a (256, 256) mask of the pixels that count, or ``None`` for all.
        """
        if search is not self._search_plan:
            self._search_plan, self._search_changed = search, True
            arrays = self._search.arrays
            for name in ("order", "job_of", "jobs", "bounds", "items"):
                table = getattr(search, name)
                arrays[name][: len(table)] = table
            arrays["count"][0] = len(search.items)
        if regions is not None or self._masked:
            for i, region in enumerate(regions or ()):
                self._host_region[i] = 1 if region is None else region
            if regions is None:
                self._host_region[...] = 1
            self._masked, self._regions_changed = regions is not None, True

    def encoded(self, count: int, views: Views, slot_index: int, timings: Mapping[str, float]) -> Encoded:
        """Return the images of the last run."""
        cls = self.host.cls[: count * len(views)].reshape(count, len(views), -1).copy()
        return Encoded(cls, views, timings, slot_index, self.ticket)

    def matched(self, count: int, views: Views, timings: Mapping[str, float]) -> list[ExecutorOutput]:
        """Return the results of the last run's search.

        Raises:
            VisionADError: The patch tokens contain NaN or Inf.
        """
        rows = (
            self.host.distance[: count * len(views)].reshape(count, len(views), self._shared.identity.grid, -1).copy()
        )
        maps, scores = self.host.maps[:count].copy(), self.host.scores[:count].tolist()
        if not np.isfinite(rows).all():
            raise VisionADError(BROKEN_TOKENS)
        return [
            ExecutorOutput(dict(zip(views, rows[i], strict=True)), maps[i], score, cutoff, timings)
            for i, (score, cutoff) in enumerate(scores)
        ]

    # -- on the owner thread -------------------------------------------------------------------------------------------

    def start(self, count: int, views: Views, engine: DeviceEngine | None, search: bool) -> None:
        """Enqueue the staged work.

        Args:
            count: Number of images.
            views: Their views.
            engine: Encodes the images. ``None``: the patch tokens are on the device already.
            search: Whether to search the patch tokens.
        """
        self._begin()
        if engine is not None:
            self.ticket += 1
            self._last = (count, views)
            for index, part in enumerate(self._staged[:count]):
                offset = index * self._image_bytes + part.start
                self._device.upload(self._pixels, self._host_pixels[index, part], self.stream, offset)
            if self._plans_changed:
                self._device.upload(self._plans.buffer, self._plans.host, self.stream)
                self._plans_changed = False
        if search:
            if self._search_changed:
                self._device.upload(self._search.buffer, self._search.host, self.stream)
                self._search_changed = False
            if self._regions_changed:
                self._device.upload(self._region, self._host_region, self.stream)
                self._regions_changed = False
        self._mark("upload")
        if engine is not None:
            self._stage("preprocess", count, views, lambda: self._preprocess(count, views))
            self._mark("preprocess")
            self._encode(engine)
        if search:
            shared = self._shared
            self.stream.wait(shared.maxima_free)
            self._stage("search", count, views, lambda: self._nearest(count, views), shared.maxima_version)
            shared.maxima_free.record(self.stream)
            self._mark("search")
            self._stage("map", count, views, lambda: self._map(count, views))
            self._mark("map")
        rows = count * len(views)
        if engine is not None:
            self._device.download(self.host.cls[:rows], self._cls, self.stream)
        if search:
            self._device.download(self.host.distance[:rows], self._distance, self.stream)
            self._device.download(self.host.maps[:count], self._maps, self.stream)
            self._device.download(self.host.scores[:count], self._scores, self.stream)
        self._mark("download")
        self.done.record(self.stream)

    def finish(self) -> Mapping[str, float]:
        """Return milliseconds by stage of the last run, which is done.

        Raises:
            VisionADError: The GPU failed.
        """
        self.done.synchronize()
        return {
            stage: self._events[stage].elapsed_ms(self._events[before])
            for before, stage in zip(self._stages, self._stages[1:], strict=False)
        }

    def start_again(self, engine: DeviceEngine) -> None:
        """Run the engine on the last images again."""
        self._begin()
        self._encode(engine)
        self.done.record(self.stream)

    def _encode(self, engine: DeviceEngine) -> None:
        count, views = self._last
        shared = self._shared
        self.stream.wait(shared.engine_free)

        def work() -> None:
            rows = count * len(views)
            engine.enqueue(self._images.ptr, self._patch.ptr, self._cls.ptr, rows, self.stream)

        if engine.capturable:
            self._stage("engine", count, views, work)
        else:
            work()
        shared.engine_free.record(self.stream)
        self._mark("engine")

    def _preprocess(self, count: int, views: Views) -> None:
        kernels, crop = self._shared.kernels, self._shared.spec.crop
        images, tables = self._plans.address("plans"), self._plans.address("tables")
        kernels["resize_across"].launch((ROW_PROGRAMS, count), (images, tables, self._across, crop), self.stream)
        kernels["resize_down"].launch(
            (crop, count),
            (images, tables, self._across, self._shared.levels, self._codes(views), len(views), self._images, crop),
            self.stream,
        )

    def _nearest(self, count: int, views: Views) -> None:
        shared, at, queries = self._shared, self._search.address, count * len(views) * self._shared.patches
        dim, kernels = shared.identity.dim, shared.kernels
        kernels["pack"].launch(
            (queries, 1), (self._patch, self._packed, self._norms, queries, dim, shared.width), self.stream
        )
        kernels["group_maxima"].launch(
            (shared.programs, 1),
            (self._packed, at("order"), at("jobs"), at("items"), at("count"), shared.maxima, shared.width), self.stream,
        )  # fmt: skip
        kernels["rescore"].launch(
            (queries, 1),
            (
                self._patch, self._norms, at("order"), at("job_of"), at("jobs"), at("bounds"), shared.maxima,
                self._distance, self._row, dim, shared.width, work_tables.accumulation_slack(dim), 1,
            ), self.stream,
        )  # fmt: skip
        if shared.self_similarity:
            weigh = kernels["weigh_rarity"]
            blocks = -(-shared.patches // weigh.constants["BLOCK_Q"])
            weigh.launch(
                (blocks, count * len(views)),
                (self._patch, self._distance, shared.identity.grid, dim, MIN_DISTANCE),
                self.stream,
            )

    def _map(self, count: int, views: Views) -> None:
        shared = self._shared
        shared.kernels["fuse_map"].launch(
            (MAP_SIZE, count),
            (
                self._distance, self._codes(views), len(views), shared.low, shared.part, self._region, self._maps,
                shared.identity.grid,
            ), self.stream,
        )  # fmt: skip
        shared.kernels["top_mean"].launch((count, 1), (self._maps, self._scores, shared.top), self.stream)

    # -- recording ----------------------------------------------------------------------------------------------------------

    def _stage(self, name: str, count: int, views: Views, work: Callable[[], None], version: int = 0) -> None:
        """Run a stage: directly the first time, then by its CUDA graph.

        Args:
            name: The stage.
            count: Number of images.
            views: Their views.
            work: Enqueues the stage.
            version: Version of the shared memory that the stage uses. A graph of another version is recorded again.
        """
        key = (name, count, views)
        recorded = self._graphs.get(key)
        if recorded is not None and recorded[0] == version:
            recorded[1].launch(self.stream)
            return
        work()  # lazy set-up happens here; a recording does not allow it
        if recorded is not None:
            recorded[1].close()
        with self._device.capture(self.stream) as graph:
            work()
        self._graphs[key] = version, graph

    def _codes(self, views: Views) -> Buffer:
        if views not in self._views:
            codes = np.array([work_tables.VIEW_CODES[v] for v in views], np.int32)
            self._views[views] = self.resources.constant(codes, self.stream)
        return self._views[views]

    def _begin(self) -> None:
        self._stages = ["start"]
        self._events["start"].record(self.stream)

    def _mark(self, stage: str) -> None:
        self._stages.append(stage)
        self._events[stage].record(self.stream)

    def download_trace(self, device: Device, rows: int) -> tuple[F32, F32]:
        """Download normalised images and patch tokens of the last encoding.

        This allocates page-locked memory, because it is not part of an inspection.

        Returns:
            Images (rows, 3, crop, crop) and patch tokens (rows, P, D), both float32.
        """
        crop, identity = self._shared.spec.crop, self._shared.identity
        with ResourceScope(device) as temporary:
            images: F32 = temporary.pinned((rows, 3, crop, crop), np.float32)
            patch: F32 = temporary.pinned((rows, self._shared.patches, identity.dim), np.float32)
            device.download(images, self._images, self.stream)
            device.download(patch, self._patch, self.stream)
            self.stream.synchronize()
            return images.copy(), patch.copy()

    def close(self) -> None:
        """Free everything."""
        for _, graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self.resources.close()
