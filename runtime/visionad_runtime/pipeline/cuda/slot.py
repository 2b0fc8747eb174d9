"""One image slot of the CUDA executor: its buffers, its streams, its recorded graphs."""

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
from ...cuda.memory import Memory
from ...errors import VisionADError
from ...images.pixels import copy_pixels
from ...scoring.anomaly_map import MAP_SIZE
from ...scoring.self_similarity import MIN_DISTANCE
from ...search import BROKEN_TOKENS
from . import work_tables as plan
from .outputs import Encoded, ExecutorOutput, Views
from .shared import SharedBuffers
from .work_tables import ImagePlan

F32 = NDArray[np.float32]
COPY, COPIERS = 1 << 20, 4
"""Bytes of an image that a thread copies at a time, and most threads: one alone would take longer for a large image than the
GPU's own copy."""
ROW_PROGRAMS = 512
"""Programs an image that the first resize pass's rows are dealt to."""


class _Layout:
    """Arrays of fixed places in one block of memory, page-locked here and on the device there, copied together."""

    def __init__(self, memory: Memory, fields: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]) -> None:
        self._places: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            self._places[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 256) * 256
        self.host: NDArray[np.uint8] = memory.pinned(end, np.uint8)
        self.host[...] = 0
        self.buffer = memory.take(end)
        self.arrays: dict[str, NDArray[Any]] = {
            name: self.host[self._places[name] :][: int(np.prod(shape)) * np.dtype(dtype).itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (shape, dtype) in fields.items()
        }

    def address(self, name: str) -> int:
        return self.buffer.ptr + self._places[name]


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
    """One stream with its buffers and graphs. What is staged and found is for who holds ``lock``, all else for the owner."""

    def __init__(self, device: Device, shared: SharedBuffers) -> None:
        self._device, self._shared = device, shared
        self.lock = threading.Lock()
        self.ticket = 0
        """Counts encodings, so that an :class:`Encoded` knows whether its tokens are still there."""
        self.memory = Memory(device)
        self._laps: list[str] = []
        self._graphs: dict[tuple[str, int, Views], tuple[int, Graph]] = {}
        self._views: dict[Views, Buffer] = {}
        self._last: tuple[int, Views] = (0, ())  # images and views of the last encoding
        try:
            self._take()
        except BaseException:
            self.memory.close()
            raise

    def _take(self) -> None:
        device, shared = self._device, self._shared
        take, pinned, hold = self.memory.take, self.memory.pinned, self.memory.hold
        self.stream = self.memory.stream(device.stream())
        self.done = hold(device.event())
        stages = ("start", "upload", "preprocess", "engine", "search", "map", "download")
        self._marks = {name: hold(device.event()) for name in stages}
        identity, rows, crop, patches = shared.identity, shared.max_rows, shared.spec.crop, shared.patches
        height, width = shared.max_image
        self._image_bytes = -(-height * width * 3 // 256) * 256
        self._host_pixels = pinned((rows, self._image_bytes), np.uint8)
        self._pixels = take(rows * self._image_bytes)
        self._table = plan.table_size(height, width, shared.spec)
        self._sizes: list[tuple[int, ...]] = [()] * rows
        self._rows = [(0, 0)] * rows  # of the images, that the crop needs
        self._staged = [slice(0)] * rows  # and the bytes of them
        self._planned: plan.SearchPlan | None = None
        self._new_sizes = self._new_plan = self._new_regions = False
        self._plans = _Layout(
            self.memory,
            {"plans": ((rows, plan.IMAGE_COLUMNS), np.int64), "tables": ((rows, self._table), np.int32)},
        )  # fmt: skip
        self._across = take(rows * height * 3 * crop)
        self._images = take(4 * rows * 3 * crop * crop)
        self._patch = take(4 * rows * patches * identity.dim)
        self._cls = take(4 * rows * identity.class_token_dim)
        self._packed = take(2 * rows * patches * shared.width)
        self._norms = take(8 * rows * patches)
        slots = rows * patches
        self._search = _Layout(
            self.memory,
            {
                "order": ((slots,), np.int32), "job_of": ((slots,), np.int32), "jobs": ((rows, plan.JOB_COLUMNS), np.int64),
                "bounds": ((rows, 2), np.float32), "count": ((1,), np.int32),
                "items": ((plan.max_items(slots, rows, shared.block_q, shared.programs), 4), np.int32),
            },
        )  # fmt: skip
        self._distance, self._row = take(4 * slots), take(4 * slots)
        self._maps, self._scores = take(4 * rows * MAP_SIZE**2), take(16 * rows)
        self._host_region = pinned((rows, MAP_SIZE, MAP_SIZE), np.uint8)
        self._host_region[...] = 1
        self._region = take(rows * MAP_SIZE**2)
        device.upload(self._region, self._host_region, self.stream)
        self.stream.synchronize()
        self._masked = False
        self.host = _Host(
            pinned((rows, identity.class_token_dim), np.float32), pinned((rows, patches), np.float32),
            pinned((rows, MAP_SIZE, MAP_SIZE), np.float32), pinned((rows, 2), np.float64),
        )  # fmt: skip

    # -- on the caller's thread, who holds the lock: the owner's is for what is short -----------------------------------

    def stage_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        """Copy images to page-locked memory, as far as the crop needs them."""
        for slot, rgb in enumerate(rgbs):
            if self._sizes[slot] != rgb.shape:
                self._describe(slot, rgb)
            first, end = self._rows[slot]
            line = rgb.nbytes // len(rgb)
            self._staged[slot] = slice(first * line, end * line)
            image = self._host_pixels[slot, : rgb.nbytes].reshape(rgb.shape)
            step = max(1, COPY // line)
            workers = min(COPIERS, available_cpus(), (end - first) // step)
            if workers < 2:
                copy_pixels(image[first:end], rgb[first:end])
            else:
                starts = range(first, end, step)
                parallel_for(partial(_copy_rows, image, rgb, step, end), starts, workers)

    def _describe(self, slot: int, rgb: NDArray[np.uint8]) -> None:
        """Write how to resize the image in ``slot``."""
        self._new_sizes = True  # until they are on the device
        spec = self._shared.spec
        found = ImagePlan.of(rgb.shape[0], rgb.shape[1], rgb.shape[2] if rgb.ndim == 3 else 1, spec)
        self._plans.arrays["tables"][slot, : len(found.tables)] = found.tables
        self._plans.arrays["plans"][slot] = found.columns(
            self._pixels.ptr + slot * self._image_bytes,
            slot * self._table,
            slot * self._shared.max_image[0] * 3 * spec.crop,
        )
        self._sizes[slot], self._rows[slot] = rgb.shape, (found.top, found.top + found.rows)

    def stage_search(self, search: plan.SearchPlan, regions: Sequence[NDArray[np.bool_] | None] | None) -> None:
        """Write what is searched where, and which of the maps' pixels count, unless it is as the time before."""
        if search is not self._planned:
            self._planned, self._new_plan = search, True
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
            self._masked, self._new_regions = regions is not None, True

    def encoded(self, count: int, views: Views, camera: int, timings: Mapping[str, float]) -> Encoded:
        """What the last run found of images."""
        cls = self.host.cls[: count * len(views)].reshape(count, len(views), -1).copy()
        return Encoded(cls, views, timings, camera, self.ticket)

    def matched(self, count: int, views: Views, timings: Mapping[str, float]) -> list[ExecutorOutput]:
        """What the last run found of them in the banks.

        Raises:
            VisionADError: NaN or Inf among the patch tokens.
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

    # -- on the owner's thread -----------------------------------------------------------------------------------------

    def start(self, count: int, views: Views, engine: DeviceEngine | None, search: bool) -> None:
        """Enqueue what was staged: encode the images with ``engine``, and search their patch tokens."""
        self._begin()
        if engine is not None:
            self.ticket += 1
            self._last = (count, views)
            for slot, part in enumerate(self._staged[:count]):
                at = slot * self._image_bytes + part.start
                self._device.upload(self._pixels, self._host_pixels[slot, part], self.stream, at)
            if self._new_sizes:
                self._device.upload(self._plans.buffer, self._plans.host, self.stream)
                self._new_sizes = False
        if search:
            if self._new_plan:
                self._device.upload(self._search.buffer, self._search.host, self.stream)
                self._new_plan = False
            if self._new_regions:
                self._device.upload(self._region, self._host_region, self.stream)
                self._new_regions = False
        self._lap("upload")
        if engine is not None:
            self._stage("preprocess", count, views, lambda: self._preprocess(count, views))
            self._lap("preprocess")
            self._encode(engine)
        if search:
            shared = self._shared
            self.stream.wait(shared.maxima_free)
            self._stage("search", count, views, lambda: self._nearest(count, views), shared.maxima_version)
            shared.maxima_free.record(self.stream)
            self._lap("search")
            self._stage("map", count, views, lambda: self._map(count, views))
            self._lap("map")
        rows = count * len(views)
        if engine is not None:
            self._device.download(self.host.cls[:rows], self._cls, self.stream)
        if search:
            self._device.download(self.host.distance[:rows], self._distance, self.stream)
            self._device.download(self.host.maps[:count], self._maps, self.stream)
            self._device.download(self.host.scores[:count], self._scores, self.stream)
        self._lap("download")
        self.done.record(self.stream)

    def finish(self) -> Mapping[str, float]:
        """Milliseconds between the marks of the last run, which is done.

        Raises:
            VisionADError: something failed on the way.
        """
        self.done.synchronize()
        return {
            stage: self._marks[stage].elapsed_ms(self._marks[before])
            for before, stage in zip(self._laps, self._laps[1:], strict=False)
        }

    def start_again(self, engine: DeviceEngine) -> None:
        """The engine on the last images once more."""
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
        self._lap("engine")

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
        shared, at, slots = self._shared, self._search.address, count * len(views) * self._shared.patches
        dim, kernels = shared.identity.dim, shared.kernels
        kernels["pack"].launch(
            (slots, 1), (self._patch, self._packed, self._norms, slots, dim, shared.width), self.stream
        )
        kernels["group_maxima"].launch(
            (shared.programs, 1),
            (self._packed, at("order"), at("jobs"), at("items"), at("count"), shared.maxima, shared.width), self.stream,
        )  # fmt: skip
        kernels["rescore"].launch(
            (slots, 1),
            (
                self._patch, self._norms, at("order"), at("job_of"), at("jobs"), at("bounds"), shared.maxima,
                self._distance, self._row, dim, shared.width, plan.accumulation_slack(dim), 1,
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

    # -- how ----------------------------------------------------------------------------------------------------------

    def _stage(self, name: str, count: int, views: Views, work: Callable[[], None], version: int = 0) -> None:
        """Run a stage: the first time as it is, then by its graph. ``version`` is of the shared memory it refers to."""
        key = (name, count, views)
        recorded = self._graphs.get(key)
        if recorded is not None and recorded[0] == version:
            recorded[1].launch(self.stream)
            return
        work()  # what is set up on first use is so before the recording, where it would not be allowed
        if recorded is not None:
            recorded[1].close()
        with self._device.capture(self.stream) as graph:
            work()
        self._graphs[key] = version, graph

    def _codes(self, views: Views) -> Buffer:
        if views not in self._views:
            codes = np.array([plan.VIEW_CODES[v] for v in views], np.int32)
            self._views[views] = self.memory.constant(codes, self.stream)
        return self._views[views]

    def _begin(self) -> None:
        self._laps = ["start"]
        self._marks["start"].record(self.stream)

    def _lap(self, stage: str) -> None:
        self._laps.append(stage)
        self._marks[stage].record(self.stream)

    def download_trace(self, device: Device, rows: int) -> tuple[F32, F32]:
        """Normalised images and patch tokens of the last encoding; page-locked memory is taken for it, this is no part
        of the line."""
        crop, identity = self._shared.spec.crop, self._shared.identity
        with Memory(device) as brief:
            images: F32 = brief.pinned((rows, 3, crop, crop), np.float32)
            patch: F32 = brief.pinned((rows, self._shared.patches, identity.dim), np.float32)
            device.download(images, self._images, self.stream)
            device.download(patch, self._patch, self.stream)
            self.stream.synchronize()
            return images.copy(), patch.copy()

    def close(self) -> None:
        for _, graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self.memory.close()
