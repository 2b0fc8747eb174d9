"""The chain's buffers, orders, graphs and bank swaps on a device made of numpy (``fakes/gpu.py``), against the numpy path."""

from __future__ import annotations

import itertools
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import preprocess, search
from visionad_runtime.cuda import kernels, thread
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import ImageError, VisionADError
from visionad_runtime.formats.manifest import FeatureIdentity, PreprocessSpec, ViewName
from visionad_runtime.pipeline.cuda import loader, shared, slot
from visionad_runtime.pipeline.cuda.executor import CudaExecutor
from visionad_runtime.pipeline.cuda.outputs import ExecutorOutput
from visionad_runtime.scoring.anomaly_map import fuse, top_k_mean, upsample
from visionad_runtime.scoring.self_similarity import self_similarity_weight
from visionad_runtime.scoring.spec import ScoringSpec

from tests.data import in_threads
from tests.fakes.engine import VIEWS, Class, FakeEngine, fake_of
from tests.fakes.gpu import FakeDevice, FakeStream

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
GRID, PATCH, DIM, CLS = 6, 4, 24, 8
SPEC = PreprocessSpec(resize=30, crop=GRID * PATCH, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IDENTITY = FeatureIdentity(
    backbone="fake", weights_sha256="0" * 64, kind="vit", layers=(0,), patch=PATCH, grid=GRID, dim=DIM, class_token="fused",
    class_token_dim=CLS, pos_embed="none", preprocess=SPEC,
)  # fmt: skip
PROJECTION = np.random.default_rng(0).standard_normal((3 * PATCH * PATCH, DIM)).astype(np.float32)


def encode_row(image: F32) -> tuple[F32, F32]:
    """A backbone: a random projection of each patch; (P, D) and (Dc,), unit rows."""
    patches = image.reshape(3, GRID, PATCH, GRID, PATCH).transpose(1, 3, 0, 2, 4).reshape(GRID * GRID, -1)
    tokens = np.einsum("pi,id->pd", patches, PROJECTION) + np.float32(0.5)  # black in `clamp` is all zeros
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    cls = tokens[:, :CLS].mean(axis=0)
    return tokens, cls / np.linalg.norm(cls)


GPUS = itertools.count()
"""Each line has a GPU, and so an owner's thread, of its own."""


def image(seed: int, height: int = 30, width: int = 40) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def enroll(name: str, seeds: Sequence[int], views: tuple[ViewName, ...] = VIEWS) -> Class:
    blocks = preprocess.encoding_names(views)
    supports = [preprocess.support_encodings(preprocess.prepare(image(s), SPEC), blocks) for s in seeds]
    features = np.stack([np.stack([encode_row(e)[0] for e in encodings]) for encodings in supports], axis=1)
    return Class(name, features, blocks)


BOLT, NUT, GEAR = enroll("bolt", [100]), enroll("nut", [200, 201]), enroll("gear", [300, 301, 302])


def expected(
    rgb: U8, bank: Class, views: tuple[ViewName, ...] = VIEWS, region: NDArray[np.bool_] | None = None
) -> ExecutorOutput:
    """The numpy path."""
    colour = rgb if rgb.ndim == 3 and rgb.shape[2] == 3 else np.repeat(rgb.reshape(*rgb.shape[:2], 1), 3, axis=2)
    images = preprocess.query_views(preprocess.prepare(colour, SPEC), views)
    tokens = [encode_row(image)[0] for image in images]
    distances = {
        v: search.nearest(t, bank.rows(v)).distance.reshape(GRID, GRID) for v, t in zip(views, tokens, strict=True)
    }
    anomaly_map = upsample(fuse(distances))
    if region is not None:
        anomaly_map = np.where(region, anomaly_map, np.float32(0))
    return ExecutorOutput(distances, anomaly_map, *top_k_mean(anomaly_map), {})


def check(found: ExecutorOutput, right: ExecutorOutput) -> None:
    assert tuple(found.distances) == tuple(right.distances)
    for view, grid in right.distances.items():
        np.testing.assert_array_max_ulp(found.distances[view], grid, maxulp=1)
    np.testing.assert_allclose(found.anomaly_map, right.anomaly_map, rtol=0, atol=1e-6)
    assert abs(found.score - right.score) < 1e-6 and abs(found.cutoff - right.cutoff) < 1e-6
    assert found.anomaly_map.dtype == np.float32 and found.anomaly_map.shape == (256, 256)


class Line:
    """A chain on a fake device."""

    def __init__(
        self,
        seed: int = 0,
        pace: int = 3,
        max_rows: int = 12,
        capturable: bool = True,
        at_once: bool = False,
        **settings: Any,
    ) -> None:
        self.at_once = at_once
        FakeDevice.gpu |= {"capability": (9, 0), "multiprocessors": 3, "seed": seed, "pace": pace}
        self.owner = DeviceThread.of(next(GPUS))
        self.device = fake_of(self.owner)
        self.engine = FakeEngine(self.owner, IDENTITY, encode_row, max_rows, capturable)
        self.executor = CudaExecutor(self.owner, self.engine, IDENTITY, **{"max_image": (64, 96), **settings})

    def warm_up(self, batches: Sequence[int] = (1,)) -> None:
        """Record every camera's graphs for these batch sizes."""
        for camera in range(len(self.executor._slots)):
            for count in batches:
                self.executor.match(self.executor.encode([image(0)] * count, camera), [BOLT] * count)

    def inspect(self, rgbs: Sequence[U8], banks: Sequence[Class], slot: int = 0) -> list[ExecutorOutput]:
        if self.at_once:
            return self.executor.inspect(rgbs, banks, slot)[1]
        return self.executor.match(self.executor.encode(rgbs, slot), banks)

    def live(self) -> int:
        return self.device.total_memory - self.owner.run(lambda device: device.free_memory())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevice.reset()
    monkeypatch.setattr(thread, "Device", FakeDevice)


@pytest.fixture
def line(gpu: None) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(**settings: Any) -> Line:
        made.append(Line(**settings))
        return made[-1]

    yield make
    for one in made:
        one.executor.close()
        assert not one.owner.run(lambda device: cast("FakeDevice", device).live()), "the chain left something behind"
        one.owner.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("capturable", [True, False])
def test_a_mixed_batch_is_the_numpy_path(line: Callable[..., Line], seed: int, capturable: bool) -> None:
    one = line(seed=seed, capturable=capturable)
    one.executor.load_banks([BOLT, NUT, GEAR])
    shapes = [(30, 40), (64, 96), (1, 1), (17, 5)]
    for turn in range(3):  # first as it is, then by graph, then with other images and classes in the same graph
        rgbs = [image(10 * turn + i, *shapes[(i + turn) % 4]) for i in range(4)]
        rgbs[1], rgbs[2] = rgbs[1][:, :, 0], rgbs[2][:, :, ::-1]  # grey, and as BGR is seen
        banks = [(BOLT, GEAR, BOLT, NUT), (NUT, NUT, NUT, NUT), (GEAR, BOLT, NUT, GEAR)][turn]
        encoded = one.executor.encode(rgbs)
        for rgb, cls in zip(rgbs, encoded.cls, strict=True):
            images = preprocess.query_views(preprocess.prepare(rgb, SPEC), VIEWS)
            np.testing.assert_array_equal(cls, [encode_row(i)[1] for i in images])
        for rgb, bank, found in zip(rgbs, banks, one.executor.match(encoded, banks), strict=True):
            check(found, expected(rgb, bank))


@pytest.mark.parametrize("views", [("original",), ("flip", "clamp"), ("clamp",)])
def test_some_views_only(line: Callable[..., Line], views: tuple[ViewName, ...]) -> None:
    one = line(scoring=ScoringSpec(views))
    bank = enroll("bolt", [100, 101], views)
    assert one.executor.max_batch_size == 12 // len(views)
    for seed in range(2):
        check(one.inspect([image(seed)], [bank])[0], expected(image(seed), bank, views))


def test_nothing_is_allocated_per_call_and_every_batch_size_has_its_graphs(line: Callable[..., Line]) -> None:
    one = line(slots=2)
    one.executor.load_banks([BOLT, NUT])
    one.warm_up((1, 3))
    made, graphs = one.device.made, len(one.device.graphs)
    assert graphs == 2 * 2 * 4  # cameras, batch sizes, stages
    launches = one.device.launches
    for turn in range(3):
        for camera in (0, 1):
            for count in (1, 3):
                one.inspect([image(turn + i, 10 + turn, 20 + i) for i in range(count)], [NUT] * count, camera)
    assert one.device.made == made and len(one.device.graphs) == graphs
    assert one.device.launches == launches + 3 * 2 * 2 * 4


def test_distances_are_weighed_by_self_similarity_where_the_scoring_says_so(line: Callable[..., Line]) -> None:
    one = line(scoring=ScoringSpec(self_similarity=True))
    images, banks = [image(0), image(1, 64, 96)], [BOLT, NUT]
    for _ in range(2):  # as it is, then by graph
        for rgb, bank, found in zip(images, banks, one.inspect(images, banks), strict=True):
            plain = expected(rgb, bank)
            tokens = [encode_row(i)[0] for i in preprocess.query_views(preprocess.prepare(rgb, SPEC), VIEWS)]
            weighed = {
                v: d * self_similarity_weight(t, GRID).reshape(GRID, GRID)
                for (v, d), t in zip(plain.distances.items(), tokens, strict=True)
            }
            for view, grid in weighed.items():
                np.testing.assert_allclose(found.distances[view], grid, rtol=2e-6)
                assert not np.allclose(grid, plain.distances[view], rtol=0.01)
            np.testing.assert_allclose(found.anomaly_map, upsample(fuse(weighed)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("share", [1e-9, 0.002, 0.01, 1.0])
def test_the_scorings_fraction_of_the_map_makes_the_score(line: Callable[..., Line], share: float) -> None:
    one = line(scoring=ScoringSpec(top_fraction=share))
    for _ in range(2):
        found = one.inspect([image(0)], [BOLT])[0]
        assert (found.score, found.cutoff) == top_k_mean(found.anomaly_map, share)


def test_at_once_is_one_after_the_other(line: Callable[..., Line]) -> None:
    one = line()
    one.executor.load_banks([BOLT, NUT])
    region = np.random.default_rng(0).random((256, 256)) > 0.7
    for turn in range(3):  # as it is, then by graph, then with other images and classes
        rgbs, banks = [image(turn, 30 + turn), image(9, 5, 60)], [(BOLT, NUT), (BOLT, NUT), (NUT, GEAR)][turn]
        encoded, found = one.executor.inspect(rgbs, banks)
        for rgb, bank, own in zip(rgbs, banks, found, strict=True):
            check(own, expected(rgb, bank))
            assert list(own.timings) == ["upload", "preprocess", "engine", "search", "map", "download"]
        images = [preprocess.query_views(preprocess.prepare(rgb, SPEC), VIEWS) for rgb in rgbs]
        np.testing.assert_array_equal(encoded.cls, [[encode_row(i)[1] for i in own] for own in images])
        np.testing.assert_array_equal(one.executor.trace(encoded)[0], images)
        again = one.executor.match(encoded, banks[::-1], [region, None])  # and once more, against others
        check(again[0], expected(rgbs[0], banks[1], region=region))
        check(again[1], expected(rgbs[1], banks[0]))


@pytest.mark.parametrize("copy", [100, 1000])
def test_large_images_are_copied_by_several_threads(
    line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, copy: int
) -> None:
    monkeypatch.setattr(slot, "COPY_BYTES", copy)
    monkeypatch.setattr(slot, "available_cpus", lambda: 4)
    one = line()
    for turn, (height, width) in enumerate([(64, 96), (64, 1), (1, 96), (37, 61), (64, 96)]):
        rgbs = [image(turn, height, width), image(50 + turn, height, width)[:, :, 0]]
        rgbs.append(image(90 + turn, height, width)[:, :, ::-1])
        for rgb, found in zip(rgbs, one.inspect(rgbs, [BOLT, NUT, BOLT]), strict=True):
            check(found, expected(rgb, BOLT if rgb.ndim == 3 else NUT))


def test_what_is_as_before_is_not_uploaded_again(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    one = line()
    one.executor.load_banks([BOLT, NUT])
    uploads: list[Any] = []
    plain, pixels = FakeDevice.upload, one.executor._slots[0]._pixels

    def told(device: FakeDevice, dst: Any, *rest: Any, **named: Any) -> None:
        uploads.append(dst)
        plain(device, dst, *rest, **named)

    monkeypatch.setattr(FakeDevice, "upload", told)

    def look(seed: int, bank: Class, width: int = 40) -> int:
        uploads.clear()
        rgb = image(seed, 30, width)
        check(one.executor.inspect([rgb], [bank])[1][0], expected(rgb, bank))
        assert uploads.count(pixels) == 1
        return len(uploads) - 1

    found = [
        look(0, BOLT),
        look(1, BOLT),
        look(2, NUT),
        look(3, NUT),
        look(4, NUT, 50),
        look(5, NUT, 50),
        look(6, BOLT, 50),
    ]
    assert found == [
        3,
        0,
        1,
        0,
        1,
        0,
        1,
    ]  # the views' codes, sizes and work; nothing; work; nothing; sizes; nothing; work


def test_timings_name_the_stages(line: Callable[..., Line]) -> None:
    one = line()
    encoded = one.executor.encode([image(0)])
    assert list(encoded.timings) == ["upload", "preprocess", "engine", "download"]
    found = one.executor.match(encoded, [BOLT])[0]
    assert list(found.timings) == ["upload", "search", "map", "download"]
    assert all(t > 0 for t in (*encoded.timings.values(), *found.timings.values()))


def test_trace_is_what_the_engine_saw_and_gave(line: Callable[..., Line]) -> None:
    one = line()
    images, tokens = one.executor.trace(one.executor.encode([image(1), image(2, 9, 9)]))
    for rgb, own, patch in zip((image(1), image(2, 9, 9)), images, tokens, strict=True):
        np.testing.assert_array_equal(own, preprocess.query_views(preprocess.prepare(rgb, SPEC), VIEWS))
        np.testing.assert_array_equal(patch, [encode_row(i)[0] for i in own])


def test_pixels_outside_the_region_do_not_count(line: Callable[..., Line]) -> None:
    one = line()
    region = np.random.default_rng(0).random((256, 256)) > 0.7
    rgbs = [image(0), image(1)]
    plain = one.inspect(rgbs, [BOLT, NUT])
    masked = one.executor.match(one.executor.encode(rgbs), [BOLT, NUT], [None, region])
    check(masked[0], expected(rgbs[0], BOLT))
    check(masked[1], expected(rgbs[1], NUT, region=region))
    again = one.inspect(rgbs, [BOLT, NUT])  # the mask does not stay
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)


# --- many cameras ----------------------------------------------------------------------------------------------------


def run_cameras(one: Line, slots: int, turns: int) -> None:
    def camera(number: int) -> Callable[[], None]:
        def work() -> None:
            for turn in range(turns):
                rgbs = [image(100 * number + 10 * turn + i) for i in range(1 + (turn + number) % 2)]
                banks = [(BOLT, NUT, GEAR)[(number + turn + i) % 3] for i in range(len(rgbs))]
                for rgb, bank, found in zip(rgbs, banks, one.inspect(rgbs, banks, number), strict=True):
                    check(found, expected(rgb, bank))

        return work

    in_threads(*(camera(i) for i in range(slots)))


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_cameras_do_not_disturb_each_other(line: Callable[..., Line], seed: int, at_once: bool) -> None:
    one = line(seed=seed, pace=1, slots=3, max_rows=6, at_once=at_once)
    one.executor.load_banks([BOLT, NUT, GEAR])
    run_cameras(one, 3, 3)


def overlap(one: Line, forgotten: str | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Enqueue two cameras' work before any of it runs, leaving out one kind of wait. Whether all results are right."""
    cameras, banks = one.executor._slots, (BOLT, NUT)
    event, wait = getattr(one.executor._shared, forgotten or "", None), FakeStream.wait
    with monkeypatch.context() as patch, one.executor._using(banks) as residents:
        patch.setattr(FakeStream, "wait", lambda stream, e: None if e is event else wait(stream, e))

        def both(start: Callable[[int], None]) -> None:
            for i in range(2):
                start(i)
            for camera in cameras:
                camera.done.synchronize()

        def match(i: int) -> None:
            cameras[i].stage_search(one.executor._plan([residents[i]], [banks[i]], VIEWS), None)
            cameras[i].start(1, VIEWS, None, True)

        def encode(i: int) -> None:
            cameras[i].stage_images([image(i)])
            cameras[i].start(1, VIEWS, one.engine, False)

        one.owner.run(lambda _: both(encode))
        one.owner.run(lambda _: both(match))
    right = [expected(image(i), bank) for i, bank in enumerate(banks)]
    return all(
        np.allclose(camera.host.distance[:3].ravel(), np.stack(list(w.distances.values())).ravel(), rtol=0, atol=1e-6)
        for camera, w in zip(cameras, right, strict=True)
    )


def test_the_fake_device_sees_a_missing_wait(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits are enough, and each is needed: some order of the streams shows it."""
    found: dict[str | None, list[bool]] = {None: [], "engine_free": [], "maxima_free": []}
    for seed in range(8):
        one = line(seed=seed, pace=1, slots=2, max_rows=3)
        one.executor.load_banks([BOLT, NUT])
        one.warm_up()
        for forgotten, outcomes in found.items():
            outcomes.append(overlap(one, forgotten, monkeypatch))
    assert all(found[None])
    assert not all(found["engine_free"]) and not all(found["maxima_free"])


# --- banks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
def test_a_class_is_enrolled_while_cameras_run(
    line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    for module in (shared, loader):
        monkeypatch.setattr(module, "STAGING_BYTES", 1024)  # many pieces
    one = line(pace=1, slots=2, max_rows=3, at_once=at_once)
    versions = [enroll("nut", range(200, 201 + n)) for n in range(3)]
    one.executor.load_banks([BOLT, versions[0]])
    current = [versions[0]]
    served = [0]
    done = threading.Event()

    def camera() -> None:
        while not done.is_set():
            bank = current[0]
            check(one.inspect([image(served[0])], [bank])[0], expected(image(served[0]), bank))
            served[0] += 1

    def clerk() -> None:
        try:
            for bank in versions[1:]:
                before = served[0]
                one.executor.load_banks([BOLT, bank])
                current[0] = bank
                while served[0] < before + 2:
                    time.sleep(0.001)
        finally:
            done.set()

    in_threads(camera, clerk)
    assert served[0] >= 4


def test_banks_that_are_not_kept_any_more_are_freed(line: Callable[..., Line]) -> None:
    one = line()
    one.executor.load_banks([GEAR])
    one.inspect([image(0)], [GEAR])
    alone = one.live()
    one.executor.load_banks([GEAR, BOLT, NUT])
    assert one.live() > alone
    one.executor.load_banks([GEAR])
    assert one.live() == alone
    found = one.inspect([image(0), image(1)], [NUT, NUT])  # not kept: uploaded for the call
    check(found[1], expected(image(1), NUT))
    assert one.live() == alone


def test_kept_banks_are_uploaded_once(line: Callable[..., Line]) -> None:
    one = line()
    one.executor.load_banks([BOLT, NUT])
    made = one.device.made
    one.executor.load_banks([NUT, BOLT])
    assert one.device.made == made


def test_a_larger_bank_gets_more_room_and_new_graphs(line: Callable[..., Line]) -> None:
    one = line(max_rows=6)
    one.executor.load_banks([BOLT])
    one.warm_up()
    graphs, room = len(one.device.graphs), one.executor._shared.maxima.nbytes
    large = enroll("large", range(400, 408))
    one.executor.load_banks([BOLT, large])
    assert one.executor._shared.maxima.nbytes > room
    for _ in range(2):
        for bank in (large, BOLT):
            check(one.inspect([image(3)], [bank])[0], expected(image(3), bank))
    assert len(one.device.graphs) == graphs


def test_no_room_for_a_bank_leaves_the_others_as_they_were(line: Callable[..., Line]) -> None:
    one = line()
    one.executor.load_banks([BOLT])
    before = one.live()
    one.device.total_memory = before + GEAR.features.nbytes + 100
    with pytest.raises(VisionADError, match="out of GPU memory"):
        one.executor.load_banks([BOLT, GEAR])
    assert one.live() == before
    check(one.inspect([image(0)], [BOLT])[0], expected(image(0), BOLT))


def test_no_room_for_the_chain_leaves_nothing_behind(gpu: None) -> None:
    owner = DeviceThread.of(next(GPUS))
    device, engine = fake_of(owner), FakeEngine(owner, IDENTITY, encode_row)
    for memory in (100, 5_000, 100_000, 400_000, 1_000_000):
        device.total_memory = memory
        with pytest.raises(VisionADError, match="out of GPU memory"):
            CudaExecutor(owner, engine, IDENTITY, slots=2, max_image=(64, 96))
        assert not owner.run(lambda _: device.live())
    owner.close()


@pytest.mark.slow(group="close")
def test_no_room_at_any_taking_leaves_nothing_behind_and_the_chain_goes_on(gpu: None) -> None:
    owner = DeviceThread.of(next(GPUS))
    device, engine = fake_of(owner), FakeEngine(owner, IDENTITY, encode_row, max_rows=3)

    def work(executor: CudaExecutor) -> None:
        executor.load_banks([BOLT])
        encoded = executor.encode([image(0)])
        executor.trace(encoded)
        check(executor.match(encoded, [NUT])[0], expected(image(0), NUT))  # not kept: uploaded for the call
        check(executor.inspect([image(1)], [GEAR])[1][0], expected(image(1), GEAR))

    for number in itertools.count(1):
        device.made, FakeDevice.fail_at = 0, number
        try:
            with CudaExecutor(owner, engine, IDENTITY, slots=2, max_image=(64, 96)) as executor:
                try:
                    work(executor)
                except VisionADError:
                    work(executor)  # there is room again
                    raise
        except VisionADError as exc:
            assert "out of GPU memory" in str(exc)
        assert not owner.run(lambda _: device.live()), f"after the failure at taking {number}"
        if device.made < number:  # it got through
            break
    assert number > 60
    owner.close()


def test_closed_while_a_bank_is_uploaded(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    one = line()
    upload = one.executor._upload

    def overtaken(bank: Any) -> Any:
        resident = upload(bank)
        one.executor.close()
        return resident

    monkeypatch.setattr(one.executor, "_upload", overtaken)
    with pytest.raises(VisionADError, match="closed"):
        one.executor.load_banks([BOLT])
    assert not one.owner.run(lambda _: one.device.live())


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_refusals(line: Callable[..., Line]) -> None:
    one = line(max_rows=7)
    executor = one.executor
    with pytest.raises(VisionADError, match="1 to 2 images of 3 views, got 3"):
        executor.encode([image(0)] * 3)
    with pytest.raises(VisionADError, match="got 0"):
        executor.encode([])
    with pytest.raises(ImageError, match="max_image"):
        executor.encode([image(0, 65, 10)])
    with pytest.raises(ImageError, match="uint8"):
        executor.encode([image(0).astype(np.float32)])  # type: ignore[list-item]
    with pytest.raises(VisionADError, match="1 to 2 images of 3 views, got 3"):
        executor.inspect([image(0)] * 3, [BOLT] * 3)
    with pytest.raises(VisionADError, match="a bank"):
        executor.inspect([image(0)], [BOLT, BOLT])
    encoded = executor.encode([image(0)])
    with pytest.raises(VisionADError, match="a bank"):
        executor.match(encoded, [BOLT, BOLT])
    with pytest.raises(VisionADError, match="'half' was not enrolled in view flip"):
        executor.match(encoded, [enroll("half", [1], ("original",))])
    with pytest.raises(VisionADError, match="no rows"):
        executor.match(encoded, [Class("empty", BOLT.features[:, :0], BOLT.blocks)])
    broken = BOLT.features.copy()
    broken[0, 0, 0, 0] = np.inf
    with pytest.raises(VisionADError, match="'bad': expected finite rows in the bank, got NaN or Inf"):
        executor.load_banks([Class("bad", broken, BOLT.blocks)])
    check(executor.match(encoded, [BOLT])[0], expected(image(0), BOLT))  # none of it did harm
    executor.encode([image(1)])
    with pytest.raises(VisionADError, match="other images since"):
        executor.match(encoded, [BOLT])
    with pytest.raises(VisionADError, match="other images since"):
        executor.trace(encoded)
    encoded = executor.encode([image(1)])
    executor.close()
    executor.close()
    for late in (
        lambda: executor.encode([image(0)]),
        lambda: executor.load_banks([GEAR]),
        lambda: executor.inspect([image(0)], [BOLT]),
        lambda: executor.match(encoded, [BOLT]),
        lambda: executor.trace(encoded),
    ):
        with pytest.raises(VisionADError, match="closed"):
            late()


def test_a_broken_engine_is_noticed(line: Callable[..., Line]) -> None:
    one = line()
    one.engine.broken = True
    with pytest.raises(VisionADError, match="NaN or Inf among the patch tokens"):
        one.inspect([image(0), image(1)], [BOLT, NUT])
    one.engine.broken = False
    check(one.inspect([image(0)], [BOLT])[0], expected(image(0), BOLT))


def test_keep_alive_runs_the_engine_and_changes_nothing(line: Callable[..., Line]) -> None:
    one = line(keep_alive=0.02)
    encoded = one.executor.encode([image(0)])
    runs = one.engine.runs
    until = time.monotonic() + 30
    while one.engine.runs < runs + 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert one.engine.runs >= runs + 3
    check(one.executor.match(encoded, [BOLT])[0], expected(image(0), BOLT))


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"), ((8, 6), "sm_86"), ((8, 7), "sm_87"), ((8, 9), "sm_89"), ((9, 0), "sm_90"), ((10, 0), "sm_100"),
        ((10, 3), "ptx_89"), ((11, 0), "ptx_89"), ((12, 0), "sm_120"), ((12, 1), "ptx_89"), ((13, 0), "ptx_89"),
    ],
)  # fmt: skip
def test_target_by_capability(capability: tuple[int, int], target: str) -> None:
    assert kernels.choose_target(capability, list(kernels.read_manifest()["targets"])) == target
    assert set(kernels.read_target(target)) == set(kernels.read_target("sm_80"))


def test_minor_versions_share_code_up_to_8_and_not_beyond() -> None:
    assert kernels.choose_target((8, 8), ["sm_80", "sm_86", "sm_90"]) == "sm_86"
    with pytest.raises(VisionADError, match=r"need compute capability 8\.0 .*, got 7\.5"):
        kernels.choose_target((7, 5), ["sm_80", "sm_86"])


def test_damaged_kernels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {name: code for name, (_, code) in kernels.read_target("sm_90").items()}
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    with pytest.raises(VisionADError, match=r"sm_90\.zip cannot be read"):
        kernels.read_target("sm_90")
    with zipfile.ZipFile(tmp_path / "sm_90.zip", "w") as archive:
        for name, data in code.items():
            archive.writestr(name, data[:-1] + b"\1" if name == "rescore" else data)
    with pytest.raises(VisionADError, match="kernel rescore is damaged"):
        kernels.read_target("sm_90")


def test_a_launch_is_checked(line: Callable[..., Line]) -> None:
    one = line()
    top_mean = one.executor._shared.kernels["top_mean"]
    stream = one.executor._shared.stream
    for args, words in (
        ((1 << 20,), "expected 3 arguments"),
        ((1 << 20, 8, 1), "multiple of 16"),
        ((1 << 20, 0, 1), "multiple of 16"),
    ):
        with pytest.raises(TypeError, match=words):
            top_mean.launch((1, 1), args, stream)
