"""`visionad bench`: its arithmetic against literal definitions, and one tiny run as a user meets it. No times are asserted."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeDevice
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.artefacts import ModelManifest, read_manifest
from visionad_runtime.bench import box, measure, roofline
from visionad_runtime.bench import run as bench_run
from visionad_runtime.bench.measure import Entrant
from visionad_runtime.bench.report import format_report
from visionad_runtime.bench.run import Settings, run_bench
from visionad_runtime.cli import run
from visionad_runtime.cuda import device as cuda
from visionad_runtime.cuda.device import Owner
from visionad_runtime.cuda.kernels import choose_target, read_target
from visionad_runtime.cuda.plan import BankView, plan_search
from visionad_runtime.errors import ModelError, VisionADError

TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=250)
QUICK = ["--batch", "1,2", "--seconds", "0", "--rounds", "3", "--starts", "1", "--threads", "1"]


# -- arithmetic --------------------------------------------------------------------------------------------------------


@given(TIMES)
def test_percentiles_are_between_the_two_calls_they_lie_between(times: list[float]) -> None:
    found, ordered = measure.summarise(times), sorted(times)
    assert found["calls"] == len(times) and found["mean"] == pytest.approx(sum(times) / len(times), abs=1e-4)
    for name, enough in (("p50", 1), ("p95", 20), ("p99", 100)):
        if len(times) < enough:
            assert found[name] is None and f"{len(times)} calls" in found["why_null"][name]
            continue
        place = int(name[1:]) / 100 * (len(times) - 1)
        low, part = int(place), place - int(place)
        high = min(low + 1, len(times) - 1)
        assert found[name] == pytest.approx(ordered[low] + part * (ordered[high] - ordered[low]), rel=1e-6, abs=1e-4)
    assert ("why_null" in found) == (len(times) < 100)


def test_the_ratio_is_of_rounds_so_that_a_slow_spell_changes_nothing() -> None:
    spell = [1.0, 50.0, 1.0, 1.0]  # the machine was busy in the second round
    a = Entrant("a", lambda _: None, [[3 * s, 3 * s] for s in spell])
    b = Entrant("b", lambda _: None, [[2 * s] for s in spell])
    assert measure.ratio(a, b) == {"median": 1.5, "lowest": 1.5, "highest": 1.5, "rounds": 4}
    b.rounds[0] = [1.0]
    found = measure.ratio(a, b)
    assert found["highest"] == 3.0 and found["median"] == statistics.median([3, 1.5, 1.5, 1.5])


class Clock:
    """Time that passes only in calls."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("cost", "seconds", "rounds", "turns", "calls"),
    [
        ({"a": 0.01, "b": 0.1}, 7, 7, 7, {"a": 100, "b": 10}),
        ({"a": 0.01, "b": 100}, 7, 7, 3, {"a": 233, "b": 1}),  # never fewer than three rounds
        ({"a": 1.0, "b": 1.4}, 7, 7, 5, {"a": 1, "b": 1}),
        ({"a": 1.0}, 0, 2, 2, {"a": 1}),
    ],
)
def test_a_race_takes_turns_within_its_time(
    cost: dict[str, float], seconds: float, rounds: int, turns: int, calls: dict[str, int]
) -> None:
    clock, order, steps = Clock(), [], []

    def entrant(name: str) -> Entrant:
        def call(number: int) -> None:
            order.append((name, number))
            clock.now += cost[name]

        return Entrant(name, call)

    field = [entrant(name) for name in cost]
    measure.race(field, seconds, rounds, lambda: steps.append(1), clock)
    assert len(steps) == rounds
    for one in field:
        assert [len(r) for r in one.rounds] == [calls[one.name]] * turns
        assert one.times == pytest.approx([cost[one.name] * 1e3] * turns * calls[one.name])
        assert [n for name, n in order if name == one.name] == list(range(1 + turns * calls[one.name]))
        assert measure.throughput(one, 4) == pytest.approx(4 / cost[one.name], rel=1e-3)
    began = [order[len(cost) + sum(calls.values()) * turn][0] for turn in range(turns)]
    assert began == [list(cost)[turn % len(cost)] for turn in range(turns)]


def test_shares_are_of_the_whole() -> None:
    table = measure.stage_table([{"decode": 1.0, "engine": 3.0, "total": 4.0}] * 3)
    assert {k: row["share"] for k, row in table.items()} == {"decode": 0.25, "engine": 0.75, "total": 1.0}


# -- roofline ----------------------------------------------------------------------------------------------------------


def test_flops_of_a_vit_counted_by_hand() -> None:
    # 2 x 2 patches of 4 pixels and a class token, dim 8, one block: T = 5
    embed = 2 * 4 * (3 * 4 * 4) * 8
    products = [
        5 * 8 * 24,
        5 * 8 * 8,
        5 * 5 * 8,
        5 * 5 * 8,
        5 * 8 * 32,
        5 * 32 * 8,
    ]  # qkv, output, two of attention, MLP
    assert roofline.vit_flops(2, 1, 8, 1, 4) == embed + 2 * sum(products)
    assert roofline.vit_flops(2, 1, 8, 3, 4) == embed + 3 * 2 * sum(products)


def test_flops_are_those_torch_counts(tiny_model: Path, tiny_weights: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from visionad_ref import Reference

    identity = read_manifest(tiny_model, ModelManifest).identity
    net = Reference.load(identity.backbone, tiny_weights, resize=72, crop=64, layers=identity.layers).backbone
    # attention as plain products: torch does not count its fused kernel for CPUs
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        net(torch.zeros(1, 3, 64, 64))
    work = roofline.backbone_work(identity, 1000, 1, True)
    assert isinstance(work, roofline.Work)
    assert work.flops == counter.get_total_flops()
    assert work.bytes == 1000 + 4 * (3 * 64 * 64 + 16 * identity.dim + identity.class_token_dim)


def test_a_final_class_token_takes_the_blocks_behind_only_when_routing(tiny_model: Path) -> None:
    identity = read_manifest(tiny_model, ModelManifest).identity.model_copy(update={"class_token": "final"})
    known, routed = (roofline.backbone_work(identity, 0, 1, routed) for routed in (False, True))
    assert isinstance(known, roofline.Work) and isinstance(routed, roofline.Work)
    block = roofline.vit_flops(4, 1, identity.dim, 1, 16) - roofline.vit_flops(4, 1, identity.dim, 0, 16)
    assert routed.flops - known.flops == (12 - 2) * block


@pytest.mark.parametrize("change", [{"backbone": "timm:vit_tiny_patch16_224"}, {"kind": "pyramid"}])
def test_unknown_flops_are_said_to_be_unknown(tiny_model: Path, change: dict[str, str]) -> None:
    identity = read_manifest(tiny_model, ModelManifest).identity.model_copy(update=change)
    assert "not known" in str(roofline.backbone_work(identity, 0, 1, True))


def test_the_roof_is_the_lower_of_compute_and_memory() -> None:
    peaks = roofline.Peaks(flops=100e9, bytes=10e9, how="")
    compute = roofline.assess(roofline.Work(flops=40e9, bytes=1e9), 1.0, peaks)  # 40 FLOP a byte: 400 GFLOP/s by memory
    memory = roofline.assess(roofline.Work(flops=4e9, bytes=1e9), 1.0, peaks)  # 4 FLOP a byte: 40 GFLOP/s
    assert (compute["bound_by"], compute["share_of_roof"]) == ("compute", 0.4)
    assert (memory["bound_by"], memory["share_of_roof"], memory["roof_gflop_per_s"]) == ("memory", 0.1, 40)
    assert roofline.assess(roofline.Work(1, 1), 1.0, None)["share_of_roof"] is None


def test_search_work_is_one_exhaustive_product() -> None:
    queries, rows = np.ones((3, 5), np.float32), np.ones((7, 5), np.float32)
    work = roofline.search_work(3, 7, 5)
    assert work.flops == 2 * 3 * 7 * 5
    assert work.bytes == queries.nbytes + rows.nbytes + 3 * 8  # a distance and a row each
    assert roofline.search_work(3, 7, 5, 2).bytes == (queries.nbytes + rows.nbytes) / 2 + 3 * 8


def test_a_search_on_the_gpu_is_held_against_16_bits(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def peaks(precision: str) -> roofline.Peaks:
        asked.append(precision)
        return roofline.Peaks({"fp32": 1e12, "fp16": 8e12}[precision], 1e15, precision)

    monkeypatch.setattr(roofline, "gpu_peaks", peaks)
    monkeypatch.setattr(roofline, "cpu_peaks", lambda threads: roofline.Peaks(1e11, 1e15, "cpu"))
    manifest = read_manifest(tiny_model, ModelManifest)
    assert manifest.precision == "fp32"
    stages = {"search": {"p50": 1.0}, "total": {"p50": 2.0}}
    entry = {"batches": {"1": {"bare_engine": {"p50": 1.0}}}, "group": 3, "precision": "fp32"}
    report: dict[str, Any] = {
        "settings": {"threads": 1, "device": None}, "pictures": {"class": "disc"}, "views": ["original"],
        "bank": {"rows_per_view": {"original": 1000.0}},
        "backends": {
            "tensorrt": {**entry, "stages": {"pixels": {**stages, "wait": {"p50": 0.1}}}},
            "onnxruntime-cpu": {**entry, "stages": {"pixels": stages}},
        },
    }  # fmt: skip
    bench_run._roofline(report, tiny_model, manifest)
    there, here = (report["backends"][name]["roofline"]["search, all views"] for name in report["backends"])
    assert asked == ["fp32", "fp16"]
    assert there["share_of_roof"] == pytest.approx(there["gflop_per_s"] / 8000, abs=1e-3)
    assert here["share_of_roof"] == pytest.approx(here["gflop_per_s"] / 100, abs=1e-3) and here["mb"] > there["mb"]


def test_cpu_peaks_are_measured() -> None:
    peaks = roofline.cpu_peaks(threads=2, side=64, copy_mb=1, repeats=1)
    assert peaks.flops > 0 and peaks.bytes > 0 and "2 threads" in peaks.how


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_gpu_peaks_are_of_random_numbers(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU whose every event is a millisecond after the one before; the arithmetic is the CPU's."""
    torch = pytest.importorskip("torch")
    seen: list[Any] = []
    clock = Clock()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            clock.now += 1.0
            self.at = clock.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

    def mm(a: Any, b: Any, out: Any) -> Any:
        seen.append((a.clone(), b.clone()))
        return torch.mm(a, b, out=out)

    fake = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: True, Event=Event), __version__="2", mm=mm, empty_like=torch.empty_like,
        backends=SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=None))), float16=torch.float16,
        bfloat16=torch.bfloat16, float32=torch.float32, randn=lambda shape, dtype, device: torch.randn(shape, dtype=dtype),
    )  # fmt: skip
    monkeypatch.setattr(roofline.importlib, "import_module", lambda name: fake)
    peaks = roofline.gpu_peaks(precision, side=8, repeats=2)
    assert isinstance(peaks, roofline.Peaks) and fake.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert peaks.flops == pytest.approx(2 * 8**3 / 1e-3)
    assert peaks.bytes == pytest.approx(2 * 64 * (2 if precision == "bf16" else 4) / 1e-3)
    for a, b in seen:
        assert len(a.unique()) > 30 and not torch.equal(a, b)


# -- a fresh process ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory by getrusage")
def test_a_fresh_process_is_not_charged_with_this_ones_memory() -> None:
    here = np.ones(400_000_000 // 8)  # 400 MB of this process
    found = box.start(["-c", "x = bytearray(60_000_000); print(len(x), flush=True)"])
    assert here.sum() > 0 and found.gpu_bytes is None
    assert found.peak is not None and 60e6 < found.peak < 250e6 and found.seconds > 0


def test_gpu_memory_is_read_while_the_process_lives() -> None:
    readings = iter([100, 350])
    assert (
        box.start(
            ["-c", "import sys; print('open', flush=True); sys.stdin.readline()"], lambda: next(readings)
        ).gpu_bytes
        == 250
    )


def test_the_inspector_is_open_while_its_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nothing refers to is given back at once, an engine's memory too."""
    held: list[weakref.ref[Any]] = []

    class Opened(contextlib.nullcontext[None]):
        @classmethod
        def open(cls, model: str, **_: Any) -> Any:
            one = cls()
            held.append(weakref.ref(one))
            return one

    class Waiting:
        def readline(self) -> str:
            (one,) = held
            assert one() is not None
            return ""

    monkeypatch.setattr("visionad_runtime.Inspector", Opened)
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps({"model": "m", "views": ["original"]})])
    monkeypatch.setattr(sys, "stdin", Waiting())
    exec(box._OPEN, {})
    (one,) = held
    assert one() is None


def test_a_fresh_process_that_fails_says_why() -> None:
    with pytest.raises(VisionADError, match=r"status 1.*ValueError: no"):
        box.start(["-c", "raise ValueError('no')"])


def test_energy_without_a_meter_is_null_with_the_reason() -> None:
    assert box.energy("no driver", lambda _: None, 1, 0) == {
        "joules_per_picture": None,
        "watts": None,
        "why_null": "no driver",
    }


def test_energy_is_the_counters_difference_by_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(box.time, "perf_counter", clock)

    class Meter(box.Nvml):
        def __init__(self) -> None: ...

        def joules(self) -> float:
            return 1000 + 70 * clock.now

    def call(_: int) -> None:
        clock.now += 0.5

    found = box.energy(Meter(), call, 2, 5)
    assert found == {"joules_per_picture": 17.5, "watts": 70.0, "calls": 10}


class FakeNvml:
    """The driver's library, of a box with this many GPUs; ``counts`` whether they count energy."""

    def __init__(self, gpus: int, counts: bool = True) -> None:
        self.gpus, self.counts, self.running = gpus, counts, False

    def nvmlInit_v2(self) -> int:
        self.running = True
        return 0

    def nvmlShutdown(self) -> int:
        self.running = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = 0xBEEF
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        assert handle.value == 0xBEEF
        memory._obj.total, memory._obj.free, memory._obj.used = 80, 50, 30
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy: Any) -> int:
        energy._obj.value = 12_500  # millijoules
        return 0 if self.counts else 3


def test_the_meter_of_the_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(1)
    monkeypatch.setattr(box.ctypes, "CDLL", lambda _: library)
    with box.open_nvml() as nvml:
        assert isinstance(nvml, box.Nvml) and library.running
        assert (nvml.used(), nvml.joules()) == (30, 12.5)
    assert not library.running


@pytest.mark.parametrize(
    ("gpus", "counts", "why"), [(2, True, "NVML sees 2 GPUs"), (1, False, "does not give the energy used")]
)
def test_no_figure_rather_than_a_wrong_one(monkeypatch: pytest.MonkeyPatch, gpus: int, counts: bool, why: str) -> None:
    monkeypatch.setattr(box.ctypes, "CDLL", lambda _: FakeNvml(gpus, counts))
    with box.open_nvml() as nvml:
        found = box.energy(nvml, lambda _: None, 1, 0)
    assert found["joules_per_picture"] is None and why in found["why_null"]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = shutil.copytree(
        tiny_model, tmp_path_factory.mktemp("report") / "model"
    )  # no test has built engines beside it
    return run_bench(model, Settings(batches=(1, 2), seconds=0, rounds=3, starts=1, threads=1))


def test_a_run_without_bank_or_pictures(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    installed = ["openvino"] if find_spec("openvino") else []
    assert list(report["backends"]) == ["onnxruntime-cpu", *installed] or Path("/dev/nvidiactl").exists()
    entry = report["backends"]["onnxruntime-cpu"]
    assert list(entry["batches"]) == ["1", "2"]
    for at in entry["batches"].values():
        assert at["whole"]["calls"] == at["pixels"]["calls"] == at["bare_engine"]["calls"] == 3
        assert at["whole"]["p99"] is None and at["whole"]["p95"] is None and at["whole"]["p50"] > 0
        assert at["whole_to_bare_engine"]["rounds"] == at["pixels_to_bare_engine"]["rounds"] == 3
        assert at["pictures_per_s"] > 0
    stages = ["preprocess", "engine", "route", "search", "map", "verdict", "total"]
    assert list(entry["stages"]) == ["whole", "pixels"]
    assert list(entry["stages"]["whole"]) == ["decode", *stages] and list(entry["stages"]["pixels"]) == stages
    assert all(stage["calls"] == 3 for way in entry["stages"].values() for stage in way.values())
    assert entry["cold_start"]["first_verdict_s"] > 0 and entry["cold_start"]["starts"] == 1
    assert entry["cold_start"]["gpu_memory_mb"] is None and entry["energy"]["joules_per_picture"] is None
    assert entry["roofline"]["engine, a view"]["gflop"] > 0
    assert report["bank"]["rows_per_view"] == dict.fromkeys(("original", "flip", "clamp"), 96)  # 6 poses of 16 patches
    assert report["bank"]["note"].startswith("temporary") and report["pictures"]["source"] == "rendered"
    assert report["peaks"]["cpu"]["gflop_per_s"] > 0
    assert report["environment"]["versions"]["onnxruntime"]


def test_backends_that_do_not_run_are_listed_with_their_reason(report: dict[str, Any]) -> None:
    text = format_report(report)
    for name, why in report["failed"].items():
        assert why and f"{name}: {why}" in text
    assert "visionad build" in report["failed"]["tensorrt"]  # it does not start a build of minutes by itself
    assert "pixels : bare engine" in text and "first verdict" in text and "temporary" in text
    decode, preprocess = (
        next(li for li in text.splitlines() if li.startswith(f"  {s} ")) for s in ("decode", "preprocess")
    )
    assert decode.count("%") == 1 and preprocess.count("%") == 2  # pixels were decoded beforehand


def test_a_user_s_bank_and_pictures_with_torch_beside_and_diagrams(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="diagrams take the eval extra")
    bank = tmp_path / "bank"
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", str(good[0])]) == 0
    capsys.readouterr()
    args = ["bench", str(tiny_model), str(bank), "--images", str(good[1]), "--images", str(good[2]), "--class", "disc"]
    args += ["--backend", "onnxruntime-cpu,onnxruntime-cuda", "--reference", "eager,method", *QUICK, "--starts", "0"]
    before = sorted(bank.rglob("*"))
    assert run([*args, "--plots", str(tmp_path / "plots"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert sorted(bank.rglob("*")) == before
    assert out["pictures"] | {"count": 2, "class": "disc", "source": "given"} == out["pictures"]
    assert out["pictures"]["sizes"] == ["128 x 96"] and "note" not in out["bank"]
    assert out["backends"]["onnxruntime-cpu"]["cold_start"] is None
    compared = {a["what"].split(" on ")[0]: a["by"] for a in out["against"] if a["what"].startswith("torch")}
    assert compared == {
        "torch eager, bare backbone": "onnxruntime-cpu, bare engine",
        "torch reference, whole": "onnxruntime-cpu",
    }
    for path in out["plots"]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    if not Path("/dev/nvidiactl").exists():
        assert list(out["failed"]) == ["onnxruntime-cuda"]


def test_no_more_pictures_are_held_than_there_is_room_for(
    tiny_model: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "MOST_BYTES", 1)
    wanted = Settings(images=tuple(good), backends=("onnxruntime-cpu",), batches=(2,), seconds=0, rounds=1, starts=0)
    assert run_bench(tiny_model, wanted)["pictures"]["count"] == 1


def test_torch_opponents_compute_what_the_engine_computes(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="torch takes the export extra")
    from visionad_export.opponents import torch_calls
    from visionad_runtime import Inspector

    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:1])
    assert inspector.bank is not None
    (one,) = inspector.inspect_files(good[1:2], class_name="disc", trace=True)
    assert one.trace is not None and one.result is not None
    stored = inspector.bank.classes["disc"]
    calls = torch_calls(inspector.manifest, stored, inspector.views, None, 1, ("eager", "method"))
    eager, method = calls["eager"], calls["method"]
    assert eager.encode is not None and method.inspect is not None
    tokens: Any = eager.encode(one.trace.views)
    np.testing.assert_allclose(tokens[0], one.trace.tokens.patch, atol=2e-4)
    wanted: Any = method.inspect(good[1])
    assert one.result.score == pytest.approx(wanted.score, abs=1e-4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--backend", "quantum"], "quantum: not known; choose of tensorrt"),
        (["--batch", "0"], "--batch 0: wanted"),
        (["--batch", "a"], "--batch a: wanted"),
        (["--reference", "jax"], "wanted some of eager, compiled, method"),
        (["--images", "none.png"], "none.png"),
        (["--class", "disc"], ""),
    ],
)
def test_mistakes_are_one_line(
    tiny_model: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not said:
        args, said = ["bank-that-is-not", *args], "bank-that-is-not"
    assert run(["bench", str(tiny_model), *args, *QUICK[2:]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--seconds", "inf"], "--seconds"),
        (["--plots", "file"], "--plots file: wanted a folder, which cannot be made: File exists; choose another place"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionad_runtime.bench import run as bench_run

    pytest.importorskip("matplotlib", reason="diagrams take the eval extra")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(bench_run, "run_bench", lambda *_: pytest.fail("it measured"))
    assert run(["bench", "model", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_backend_asked_for_that_fails_leaves_the_others_and_none_at_all_is_an_error(
    tiny_model: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionad_runtime.bench import run as bench_run

    real = bench_run.Inspector.open

    def broken(model: Path, bank: Path, *, backend: str, **rest: Any) -> Any:
        if backend == "onnxruntime-cuda":
            raise ModelError("self-test of onnxruntime-cuda failed at score: off")
        return real(model, bank, backend=backend, **rest)

    monkeypatch.setattr(bench_run.Inspector, "open", broken)
    asked = Settings(images=tuple(good), batches=(1,), seconds=0, rounds=1, starts=0, threads=1)
    found = run_bench(tiny_model, replace(asked, backends=("onnxruntime-cuda", "onnxruntime-cpu")))
    assert list(found["backends"]) == ["onnxruntime-cpu"]
    assert found["failed"] == {"onnxruntime-cuda": "self-test of onnxruntime-cuda failed at score: off"}
    assert found["pictures"]["count"] == len(good) - 1  # the first one is enrolled, so it is not timed
    with pytest.raises(VisionADError, match="no backend runs here: onnxruntime-cuda: self-test"):
        run_bench(tiny_model, replace(asked, backends=("onnxruntime-cuda",)))
    with pytest.raises(VisionADError, match=r"^views nope: wanted some of original,flip,clamp, each once$"):
        run_bench(tiny_model, replace(asked, views=("nope",)))


# -- benchmarks/gpu.sh -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("gpu_table")


@pytest.mark.parametrize(
    ("state", "status"), [("ok", 0), ("skipped", 0), ("refused", 0), ("FAILED", 1), ("TIMED OUT", 1)]
)
def test_only_a_check_that_failed_makes_the_script_fail(
    gpu_table: Any, state: str, status: int, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    steps = [["environment", "ok", "1", "H100"], ["parity", state, "20", "the reason"]]
    steps += [[f"step {i}", "skipped", "0", f"reason {i}"] for i in range(60)]
    (tmp_path / "steps.tsv").write_text("".join("\t".join(step) + "\n" for step in steps))
    (tmp_path / "bench-tiny.json").write_text(json.dumps(report))
    raced = [{"way": "plain", "fails": "no memory"}, {"way": "fused", "gpu_ms": {"p50": 1.5}}]
    (tmp_path / "ways-tiny.json").write_text(
        json.dumps({"model": {"backbone": "tiny", "precision": "fp16"}, "ways": raced})
    )
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", str(tmp_path)])
    assert gpu_table.main() == status
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 40 and out == (tmp_path / "table.txt").read_text()
    assert ("the reason" in out) == (state != "ok") and "onnxruntime-cpu" in out
    assert "ways tiny fp16: 1.500 / - ms (fused / plain)" in out


def batch_of(pixels: float) -> dict[str, Any]:
    """Pictures from pixels to verdict in so many ms, from files in 6, where the engine with copies takes 5."""
    ratios = {"whole_to_bare_engine": {"median": 1.2}, "pixels_to_bare_engine": {"median": pixels / 5}}
    return {"whole": {"p50": 6.0}, "pixels": {"p50": pixels}, "bare_engine": {"p50": 5.0}, **ratios}


def bench_of(model: str, precision: str, backend: str, **changes: Any) -> dict[str, Any]:
    """As much of a bench report as the aims are read from: an engine of 4 ms on the GPU's clock, 1 TFLOP in three views."""
    entry = {
        "roofline": {"engine, a view": {"gflop": 1000 / 3}},
        "stages": {"pixels": {"engine": {"p50": 4.0}, "wait": {"p50": 0.1}}},
        "batches": {"1": batch_of(4.4)},
    }
    return {
        "model": {"name": f"{model} (…)", "precision": precision}, "views": ["original", "flip", "clamp"],
        "peaks": {"gpu": {"gflop_per_s": 500e3}}, "backends": {backend: {**entry, **changes}},
    }  # fmt: skip


def parity_of(backend: str, cosine: float, auroc: float | None) -> dict[str, Any]:
    found = None if auroc is None else {"difference": auroc}
    return {
        "model": "dinov2_vits14_reg (…)",
        "backend": backend,
        "precision": "fp16",
        "patch_min_cosine": cosine,
        "auroc": found,
    }


def states(found: list[dict[str, Any]]) -> list[bool | None]:
    return [one["pass"] for one in found]


def test_aims_are_of_the_large_backbone_and_of_gpus(gpu_table: Any) -> None:
    assert states(gpu_table.every_aim([], [], [], [])) == [None] * 6
    large = bench_of("dinov2_vitl14_reg", "bf16", "tensorrt")
    others = [
        bench_of("dinov2_vits14_reg", "bf16", "tensorrt"),
        bench_of("dinov2_vitl14_reg", "bf16", "onnxruntime-cpu"),
    ]
    assert states(gpu_table.every_aim(others, [], [], [])) == [None] * 6
    engine, whole, *_ = gpu_table.every_aim([*others, large], [], [], [])
    assert engine["pass"] is False and engine["found"].startswith(
        "50.0% (tensorrt, bf16: 250 of 500"
    )  # 1 TFLOP in 4 ms
    assert whole["pass"] is True
    assert (
        whole["found"] == "1.100: 4.40 ms, the engine 4.00; with its copies 0.880, from the file 1.200 (tensorrt, bf16)"
    )
    slow = bench_of("dinov2_vitl14_reg", "bf16", "tensorrt", batches={"1": batch_of(4.7)})
    assert gpu_table.every_aim([slow], [], [], [])[1]["pass"] is False
    search = {"peaks": {"bf16": {"tflop_per_s": 450.0}}, "cells": [], "aims": []}
    assert gpu_table.every_aim([large], [], [search], [])[0]["pass"] is True  # 250 of 450
    half = bench_of("dinov2_vitl14_reg", "fp16", "tensorrt")
    assert gpu_table.every_aim([half], [], [], [])[0]["pass"] is None  # no peak in bf16 was measured
    single = bench_of("dinov2_vitl14_reg", "fp32", "tensorrt")
    assert states(gpu_table.every_aim([single], [], [search], []))[:2] == [None, True]
    hosts = bench_of("dinov2_vitl14_reg", "bf16", "tensorrt", stages={"pixels": {"engine": {"p50": 4.0}}})
    found = gpu_table.every_aim([hosts], [], [], [])[0]["found"]
    assert found.startswith("40.0%")  # with copies, 5 ms
    by_ort = bench_of("dinov2_vitl14_reg", "bf16", "onnxruntime-cuda")
    assert gpu_table.every_aim([by_ort], [], [], [])[0]["found"].startswith("50.0% (onnxruntime-cuda, bf16")


@pytest.mark.parametrize(
    ("parities", "wanted"),
    [
        ([("onnxruntime-cpu", 0.5, 0.5)], [None, None]),
        ([("tensorrt", 0.9995, None), ("onnxruntime-cpu", 0.5, 0.5)], [True, None]),
        ([("tensorrt", 0.9995, 0.0), ("tensorrt-rtx", 0.9989, 0.0011)], [False, False]),
        ([("tensorrt", 0.999, 0.001)], [True, True]),
    ],
)
def test_accuracy_is_the_worst_on_a_gpu(gpu_table: Any, parities: list[Any], wanted: list[bool | None]) -> None:
    assert states(gpu_table.every_aim([], [parity_of(*p) for p in parities], [], []))[2:4] == wanted


# -- benchmarks/gpu_search.py ------------------------------------------------------------------------------------------


@pytest.fixture
def fake_owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GPU 0 is the fake one, on which everything takes a millisecond."""
    monkeypatch.setattr(Owner, "_all", {})
    FakeDevice.reset()
    monkeypatch.setattr(cuda, "Device", FakeDevice)
    yield
    Owner.of(0).close()


@pytest.fixture
def gpu_search(gpu_table: Any, fake_owner: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("gpu_search")
    monkeypatch.setattr(module, "CALLS", 3)
    return module


@pytest.mark.parametrize(
    ("queries", "rows"), [(784, 1_000_000), (25088, 1_000_000), (25088, 50_001), (25088, 4_000_000)]
)
def test_a_score_matrix_in_tiles_is_one_that_cublas_is_fast_with(gpu_search: Any, queries: int, rows: int) -> None:
    free = 70_000_000_001
    tile = importlib.import_module("gpu_opponents").tile_rows(queries, rows, free)
    assert tile == rows or (0 < tile < rows and tile % 8 == 0 and 2 * queries * tile <= free / 4)


def numpy_peer(gpu_search: Any, wrong: float = 0.0) -> Any:
    """A contender that reads the fake GPU's memory where other libraries would read a real one's."""

    def make(ground: Any, queries: Any, bank: Any, compiled: bool) -> list[Any]:
        def scores() -> Any:
            q, b = (
                ground.device.read(one.__cuda_array_interface__["data"][0], np.float16, *one.shape).astype(np.float32)
                for one in (queries, bank)
            )
            return q @ b.T

        def found() -> Any:
            return scores().max(axis=1) + wrong, scores().argmax(axis=1)

        one, two = gpu_search.PRODUCT, gpu_search.MAXIMUM
        return [gpu_search.Contender(one, "", lambda: 0.9), gpu_search.Contender(two, "", lambda: 1.2, found)]

    return make


SEARCH = [
    "--rows",
    "40",
    "2000",
    "--dims",
    "64",
    "24",
    "--queries",
    "5",
    "--patches",
    "3",
    "--class-rows",
    "96",
    "--each",
    "0.001",
]
SEARCH += ["--cache", "65536"]


def test_the_search_s_benchmark_on_a_fake_gpu(
    gpu_search: Any, gpu_table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu_search.PEERS, "torch", numpy_peer(gpu_search))
    out = tmp_path / "search.json"
    assert gpu_search.main([*SEARCH, "--out", str(out)]) == 0
    found, told = json.loads(out.read_text()), capsys.readouterr().out
    assert [(c["rows"], c["dim"]) for c in found["cells"]] == [(2000, 64), (40, 64), (2000, 24), (40, 24)]
    one = found["cells"][0]
    assert one["share_of_cublas"] == 0.9 and one["to_gemm_and_max"] == 0.8333  # 0.9 and 1.2 ms against 1
    assert one["tflop_per_s"] == round(2 * 5 * 2000 * 64 / 1e9, 2) and set(one["kernels_ms"]) == {
        "pack",
        "group_maxima",
        "rescore",
    }
    assert "cupy" in one["missing"] and "faiss" in one["missing"]
    assert [m["ratio"] for m in found["mixed"]] == [{"one class, all rows": 1.0, "one class, same work": 1.0}] * 2
    assert states(found["aims"]) == [None, True, True]
    assert "not measured  search at 784 x 1000000 x 1024" in told and "5 x 2000 x 64" in told
    assert len(gpu_table.table([["search", "ok", "1", ""]], [], [], [found])) > 4
    assert not Owner.of(0).run(lambda device: len(device._buffers))


@pytest.mark.parametrize("wrong", [False, True])
def test_tiles_are_raced_and_held_against_the_built_one(
    gpu_search: Any, wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    module = importlib.import_module("gpu_tiles")
    from visionad_export.kernels.build import Built

    target = choose_target(FakeDevice.gpu["capability"], list(module.TARGETS))
    product = read_target(target)
    right, searches = FakeDevice.kernels["group_maxima"], list[int]()

    def compiled(name: str, target: str, tile: Any, changes: Any) -> Built:
        if "registers" in changes if changes else tile.stages == 3:
            raise RuntimeError("PassManager::run failed\nand much more")
        record, code = product[name]
        blocks = {"BLOCK_Q": tile.block_q, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k} | changes
        blocks = {block: size for block, size in blocks.items() if block in record["constants"]}
        spilled = 8 if tile.block_q == 64 else 0
        return Built(code, record | {"constants": {**record["constants"], **blocks}, "spill_bytes": spilled})

    def first_pass(device: Any, grid: Any, block: Any, *args: Any) -> None:
        """For all but the first tile, perhaps, the last query's tiles have maxima that no group reaches."""
        right(device, grid, block, *args)
        maxima = int(args[5])
        searches.append(maxima)
        if wrong and maxima != searches[0]:
            found = device._buffers[maxima].bytes.view(np.float32)
            found[:], found[-4:] = -9, 9

    monkeypatch.setattr(module, "compile_kernel", compiled)
    monkeypatch.setattr(module, "RUNS", (2, 1))
    monkeypatch.setitem(FakeDevice.kernels, "group_maxima", first_pass)
    out = tmp_path / "tiles.json"
    sizes = ["--size", "300", "256", "64", "--size", "40", "50", "24", "--cache", "65536", "--each", "0.002"]
    assert module.main([*sizes, "--out", str(out)]) == wrong
    found, told = json.loads(out.read_text()), capsys.readouterr()
    assert (
        found["built"] == module.name_of(module.TILES[module.TARGETS[target]])
        and found["tiles"][0]["rescore"]["registers"]
    )
    assert all(set(one["p50_ms"]) == {"300 x 256 x 64", "40 x 50 x 24"} for one in found["tiles"])
    assert not any(
        one["tile"]["stages"] == 3 or one["tile"]["block_q"] == 64 for one in found["tiles"][1:] if not one["changes"]
    )
    assert len(found["tiles"]) + len(found["refused"]) == len(module.CANDIDATES) + len(module.SECOND)
    assert sum(1 for one in found["tiles"] if one["changes"]) == len(module.SECOND) - 3
    assert "PassManager::run failed" in told.out and "and much more" not in told.out
    assert ("finds other rows" in told.err) == wrong
    assert set(found["first_pass_dealt_p50_ms"]) == {"300 x 256 x 64"}
    assert told.out.count(", dealt ") == 2 + 3 * 2
    assert not Owner.of(0).run(lambda device: len(device._buffers))


def test_work_dealt_otherwise_is_the_same_work() -> None:
    pytest.importorskip("triton")
    module = importlib.import_module("gpu_tiles")
    rows, queries, block = 100_000, 784, 256
    planned = plan_search([(BankView(0, 0, rows, 0.0, 1.0), np.arange(queries, dtype=np.int32))], 128, block, 132).items
    ways = module.deals(planned, block)
    assert len(ways) == 2 + 3 * len(module.RUNS) and ways["as planned"] is planned
    for way, items in ways.items():
        assert items.dtype == np.int32 and items.flags.c_contiguous
        read = np.zeros((queries // 128 + 1, rows // block + 1), int)
        for _job, query, begin, end in items.tolist():
            read[query // 128, begin // block : -(-end // block)] += 1
        if module.CACHED in way:
            assert not items[:, 2].any() and read.sum() == read.size
        else:
            assert (read == 1).all()
        if way.endswith("apart"):
            assert (np.diff(items[:, 1]) >= 0).all()


def shared_rows(shared: Any) -> Any:
    """The fake GPU's memory behind what is shared with other libraries."""
    there = shared.__cuda_array_interface__
    assert there["typestr"] == "<f2" and there["strides"] is None
    return Owner.of(0).run(lambda device: device.read(there["data"][0], np.float16, *there["shape"]))


def fake_torch() -> Any:
    """torch with CUDA's names, on the CPU; little memory, so that the score matrix is made in tiles."""
    import torch

    one = ModuleType("torch")
    vars(one).update(vars(torch))
    nothing = contextlib.nullcontext
    one.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True, mem_get_info=lambda: (4 * 2 * 5 * 700, 0), ExternalStream=lambda handle: handle,
        stream=nothing, synchronize=lambda: None, graph=lambda graph, stream: nothing(), empty_cache=lambda: None,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
    )  # fmt: skip
    one.as_tensor = lambda shared, device: torch.from_numpy(shared_rows(shared))  # type: ignore[attr-defined]
    one.empty = lambda n, dtype, device: torch.full((n,), 77, dtype=dtype)  # type: ignore[attr-defined]
    one.compile = lambda call, dynamic: call  # type: ignore[attr-defined]
    return one


def fake_cupy() -> Any:
    one = ModuleType("cupy")
    vars(one).update(vars(np))
    one.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=lambda: SimpleNamespace(mem_info=(4 * 2 * 5 * 700, 0)), ExternalStream=contextlib.nullcontext
    )
    one.asarray, one.asnumpy = shared_rows, np.asarray  # type: ignore[attr-defined]
    return one


def fake_faiss() -> Any:
    import torch

    def knn_gpu(resources: Any, q: Any, b: Any, k: int, metric: int) -> Any:
        assert (k, metric) == (1, 0)
        return torch.topk(q.float() @ b.float().t(), 1, dim=1)

    return SimpleNamespace(StandardGpuResources=object, METRIC_INNER_PRODUCT=0, knn_gpu=knn_gpu)


def fake_cuvs() -> Any:
    def search(index: Any, queries: Any, k: int) -> Any:
        scores = shared_rows(queries).astype(np.float32) @ shared_rows(index).T.astype(np.float32)
        found = scores.max(axis=1, keepdims=True), scores.argmax(axis=1)[:, None]
        return tuple(SimpleNamespace(copy_to_host=lambda one=one: one) for one in found)

    def build(bank: Any, metric: str) -> Any:
        assert metric == "inner_product"
        return bank

    return SimpleNamespace(brute_force=SimpleNamespace(build=build, search=search))


@pytest.mark.parametrize("cublas", ["torch", "cupy"])
def test_contenders_search_the_same_memory(
    gpu_search: Any, cublas: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every contender's own code on look-alikes of its library: they agree with the runtime's search, in tiles too."""
    pytest.importorskip("torch")
    stand_ins = {"faiss": fake_faiss(), "faiss.contrib.torch_utils": None, "cuvs.neighbors": fake_cuvs()}
    stand_ins |= {"torch": fake_torch(), "cupy": fake_cupy()}
    if cublas == "cupy":
        stand_ins["torch"].cuda.is_available = lambda: False

    def library(name: str) -> Any:
        if name not in stand_ins:
            raise ImportError(name)
        return stand_ins[name]

    monkeypatch.setattr(importlib, "import_module", library)
    monkeypatch.setattr(
        gpu_search.roofline, "gpu_peaks", lambda precision: gpu_search.roofline.Peaks(1e12, 1e12, "made up")
    )
    monkeypatch.setattr(gpu_search, "AIM", (5, 40, 64))
    monkeypatch.setitem(sys.modules, "torch", stand_ins["torch"])
    out = tmp_path / "search.json"
    assert gpu_search.main([*SEARCH, "--compiled", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["cells"][0]["share_of_peak"] is not None and states(found["aims"])[0] is not None
    for one in found["cells"]:
        product = {gpu_search.PRODUCT, gpu_search.MAXIMUM}
        if cublas == "torch" and one["rows"] == 40:  # small enough to be made whole
            product |= {gpu_search.EXPRESSION} | ({"torch compiled"} if one["dim"] == 64 else set())
        assert set(one["ms"]) == {gpu_search.OURS, "faiss", "cuvs", *product}
        assert set(one["missing"]) == ({"cupy"} if cublas == "torch" else {"torch"})


def test_a_contender_that_finds_something_else_is_an_error(
    gpu_search: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu_search.PEERS, "torch", numpy_peer(gpu_search, wrong=0.01))
    out = tmp_path / "search.json"
    assert gpu_search.main([*SEARCH, "--out", str(out)]) == 1
    assert "5 x 40 x 64: gemm + max and the runtime differ by 0.01 in score" in capsys.readouterr().err
    assert len(json.loads(out.read_text())["cells"]) == 4  # and the times are there


def test_a_row_nearer_than_the_runtime_s_is_a_fault(gpu_search: Any) -> None:
    one = np.array([0.5, 0.25], np.float32)
    assert gpu_search.disagreements("x", one, one + np.float32(1e-3), np.zeros(2)) == []
    assert "x found a row nearer by 0.001" in gpu_search.disagreements("x", one, one, np.array([0, 1e-3]))[0]


def test_a_gpu_that_fails_leaves_what_was_measured(
    gpu_search: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = gpu_search.cell, [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise VisionADError("the GPU failed running: an illegal memory access")
        return real(*args)

    monkeypatch.setattr(gpu_search, "cell", failing)
    out = tmp_path / "search.json"
    assert gpu_search.main([*SEARCH, "--out", str(out)]) == 1
    assert "illegal memory access" in capsys.readouterr().err
    assert len(json.loads(out.read_text())["cells"]) == 2
    FakeDevice.missing = "no NVIDIA driver here"
    Owner.of(0).close()
    assert gpu_search.main(SEARCH) == 1 and "no NVIDIA driver here" in capsys.readouterr().err


def test_the_mixture_of_classes_does_not_wait_for_every_size(
    gpu_search: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(gpu_search.PEERS, "torch", numpy_peer(gpu_search))
    order: list[str] = []
    for name in ("cell", "mixed"):
        real = getattr(gpu_search, name)

        def told(*arguments: Any, _name: str = name, _real: Any = real) -> Any:
            order.append(_name)
            return _real(*arguments)

        monkeypatch.setattr(gpu_search, name, told)
    assert gpu_search.main([*SEARCH, "--out", str(tmp_path / "search.json")]) == 0
    assert order == ["cell", "mixed", "cell"] * 2


def test_what_does_not_fit_is_told(gpu_search: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FakeDevice.gpu["total_memory"] = 600_000
    out = tmp_path / "search.json"
    assert gpu_search.main([*SEARCH, "--out", str(out)]) == 0
    assert gpu_search.main([*SEARCH, "--seconds", "0"]) == 0
    told = capsys.readouterr().out
    assert "out of GPU memory" in told and "no time left of 0 s (5 x 2000 x 64" in told
    assert "2000 x 64" in str(json.loads(out.read_text())["skipped"])


@pytest.mark.parametrize(
    ("share", "ratio", "mixed", "wanted"),
    [
        (0.75, 1.0, 1.0, [True, True, True]),
        (0.749, 1.001, 1.001, [False, False, False]),
        (None, None, None, [None, None, None]),
    ],
)
def test_aims_of_the_search(gpu_search: Any, share: Any, ratio: Any, mixed: Any, wanted: list[bool | None]) -> None:
    queries, rows, dim = gpu_search.AIM
    size = {"queries": queries, "rows": rows, "dim": dim}
    small = {"queries": 784, "rows": 1000, "dim": 192, "share_of_cublas": 0.1, "to_gemm_and_max": 0.5}
    cells = [
        small | {"to_gemm_and_max": None if ratio is None else 0.5},
        size | {"share_of_cublas": share, "to_gemm_and_max": ratio},
    ]
    mixtures = [] if mixed is None else [{"ratio": {"one class, all rows": mixed, "one class, same work": 2.0}}]
    assert states(gpu_search.aims(cells, mixtures)) == wanted


def test_banks_of_a_million_rows_come_before_larger_ones(gpu_search: Any) -> None:
    assert gpu_search.passes([1000, 4_000_000, 1_000_000], [1024, 384]) == [
        (1024, [1_000_000, 1000]), (384, [1_000_000, 1000]), (1024, [4_000_000]), (384, [4_000_000]),
    ]  # fmt: skip


# -- benchmarks/gpu_chain.py -------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_chain(gpu_table: Any) -> Any:
    return importlib.import_module("gpu_chain")


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "tensorrt"])
def test_an_inspector_under_load(
    gpu_chain: Any, gpu_table: Any, backend: str, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    on_gpu = backend == "tensorrt"
    if on_gpu:  # its stand-in, on the fake GPU
        request.getfixturevalue("fake_owner")
        pytest.importorskip("onnx", reason="the stand-in parses with it")
        monkeypatch.setitem(sys.modules, "tensorrt", importlib.import_module("fake_tensorrt").make("11"))
    monkeypatch.setattr(gpu_chain, "SIZES", ((48, 64), (70, 50)))
    monkeypatch.setattr(gpu_chain, "PAUSES", (0.01, 0.05))
    out = tmp_path / "chain.json"
    args = [str(own_model), "--backend", backend, "--threads", "1", "--cameras", "1", "2", "--calls", "25"]
    assert gpu_chain.main([*args, "--seconds", "8", "--side", "96", "--out", str(out)]) == 0
    found, told = json.loads(out.read_text()), capsys.readouterr().out
    assert [(s["height"], s["width"]) for s in found["sizes"]] == [(48, 64), (70, 50)]
    stages = {"upload", "preprocess"} if on_gpu else {"preprocess"}
    assert all(set(s["chain"]) == stages and s["decode png"] > 0 for s in found["sizes"])
    assert [c["cameras"] for c in found["cameras"]] == [1, 2] and all(c["pictures_per_s"] > 0 for c in found["cameras"])
    steady = found["steady"]
    assert 10 <= steady["calls"] <= 25 and len(steady["memory"]) == 10 and steady["gpu_grew"] == (0 if on_gpu else None)
    assert {"engine", "verdict", "total"} < set(steady["stages"]) and "\nthe slowest hundredth of them: " in told
    assert found["enrolment"]["enrolled"] >= 1 and found["enrolment"]["during"]["calls"] >= 1
    assert set(found["pauses"]) == ({"plain", "kept_alive"} if on_gpu else {"plain"})
    assert all(row["calls"] >= 2 and row["p50"] > 0 for rows in found["pauses"].values() for row in rows)
    assert states(found["aims"])[0] is None and "2 cameras during enrolment" in told
    lines = gpu_table.table([["load", "ok", "1", ""]], [], [], [], [found])
    assert any(line.startswith(f"cameras {backend} deit_tiny") for line in lines)


def test_the_stages_of_slow_calls_are_told(gpu_chain: Any) -> None:
    """Every hundredth of 300 calls waits, every fourth has a longer search; calls beyond those that there is room for are left
    out."""
    stages = gpu_chain.Stages(300, {"wait": 0.0, "search": 0.0, "total": 0.0})
    for number in range(400):
        wait, search = (5.0 if number % 100 == 7 else 0.5), (1.5 if number % 4 == 0 else 1.0)
        late = 50.0 if number >= 300 else 0.0
        stages.note({"wait": wait, "search": search + late, "total": wait + search + late})
    assert stages.slowest() == {
        "wait": {"p50": 0.5, "slowest": 5.0},
        "search": {"p50": 1.0, "slowest": 1.0},
        "total": {"p50": 1.5, "slowest": 6.0},
    }


def test_an_error_of_one_camera_stops_all(gpu_chain: Any) -> None:
    class Broken(gpu_chain.Line):  # type: ignore[misc]
        def __init__(self) -> None: ...

        def inspect(self, number: int) -> None:
            if number > 3:
                raise VisionADError("the fourth fails")

    with pytest.raises(VisionADError, match="fourth"):
        Broken().calls(3, lambda _: True)


@pytest.mark.parametrize(
    ("calls", "p99", "host", "gpu", "wanted"),
    [
        (100_000, 1.3, 1e6, 0, [True, True, True]),
        (100_000, 1.31, 17e6, 4096, [False, False, False]),
        (5000, 1.0, 0, 0, [None, None, None]),  # too few to tell
        (5000, 9.0, 17e6, 4096, [None, False, False]),  # but enough to see a leak
        (50, None, 0, None, [None, None, None]),
    ],
)
def test_aims_under_load(
    gpu_chain: Any, calls: int, p99: float | None, host: float, gpu: int | None, wanted: list[bool | None]
) -> None:
    steady = {"calls": calls, "p50": 1.0, "p99": p99, "host_grew": host, "gpu_grew": gpu, "gpu_why_null": "no GPU"}
    assert states(gpu_chain.aims({"steady": steady})) == wanted


# -- the script --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_gpu_script_parses() -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
