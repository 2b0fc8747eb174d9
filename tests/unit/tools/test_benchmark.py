"""`visionad bench`: its arithmetic against literal definitions, and one tiny run as a user meets it. No times are asserted."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.cli.main import run
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.tools.benchmark import cold_start, measure, nvml, roofline
from visionad_runtime.tools.benchmark import run as bench_run
from visionad_runtime.tools.benchmark.measure import Candidate
from visionad_runtime.tools.benchmark.report import format_report
from visionad_runtime.tools.benchmark.run import Settings, run_bench

from tests.data import ROOT

BENCHMARKS = ROOT / "benchmarks"

TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=250)
QUICK = ["--batch", "1,2", "--seconds", "0", "--rounds", "3", "--starts", "1", "--threads", "1"]


# -- arithmetic --------------------------------------------------------------------------------------------------------


@given(TIMES)
def test_percentiles_are_between_the_two_calls_they_lie_between(times: list[float]) -> None:
    found, ordered = measure.summarize(times), sorted(times)
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
    a = Candidate("a", lambda _: None, [[3 * s, 3 * s] for s in spell])
    b = Candidate("b", lambda _: None, [[2 * s] for s in spell])
    assert measure.ratio(a, b) == {"median": 1.5, "lowest": 1.5, "highest": 1.5, "rounds": 4}
    b.rounds[0] = [1.0]
    found = measure.ratio(a, b)
    assert found["highest"] == 3.0 and found["median"] == statistics.median([3, 1.5, 1.5, 1.5])


class StageTimer:
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
    clock, order, steps = StageTimer(), [], []

    def candidate(name: str) -> Candidate:
        def call(number: int) -> None:
            order.append((name, number))
            clock.now += cost[name]

        return Candidate(name, call)

    field = [candidate(name) for name in cost]
    measure.time_interleaved(field, seconds, rounds, lambda: steps.append(1), clock)
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
    peaks = roofline.Peaks(flops=100e9, bytes=10e9, method="")
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
    roofline.add_roofline(report, tiny_model, manifest)
    there, here = (report["backends"][name]["roofline"]["search, all views"] for name in report["backends"])
    assert asked == ["fp32", "fp16"]
    assert there["share_of_roof"] == pytest.approx(there["gflop_per_s"] / 8000, abs=1e-3)
    assert here["share_of_roof"] == pytest.approx(here["gflop_per_s"] / 100, abs=1e-3) and here["mb"] > there["mb"]


def test_cpu_peaks_are_measured() -> None:
    peaks = roofline.cpu_peaks(threads=2, side=64, copy_mb=1, repeats=1)
    assert peaks.flops > 0 and peaks.bytes > 0 and "2 threads" in peaks.method


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_gpu_peaks_are_of_random_numbers(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU whose every event is a millisecond after the one before; the arithmetic is the CPU's."""
    torch = pytest.importorskip("torch")
    seen: list[Any] = []
    clock = StageTimer()

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
    found = cold_start.start(["-c", "x = bytearray(60_000_000); print(len(x), flush=True)"])
    assert here.sum() > 0 and found.gpu_bytes is None
    assert found.peak is not None and 60e6 < found.peak < 250e6 and found.seconds > 0


def test_gpu_memory_is_read_while_the_process_lives() -> None:
    readings = iter([100, 350])
    assert (
        cold_start.start(
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
    exec(cold_start._OPEN, {})
    (one,) = held
    assert one() is None


def test_a_fresh_process_that_fails_says_why() -> None:
    with pytest.raises(VisionADError, match=r"status 1.*ValueError: no"):
        cold_start.start(["-c", "raise ValueError('no')"])


def test_energy_without_a_meter_is_null_with_the_reason() -> None:
    assert nvml.energy("no driver", lambda _: None, 1, 0) == {
        "joules_per_picture": None,
        "watts": None,
        "why_null": "no driver",
    }


def test_energy_is_the_counters_difference_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StageTimer()
    monkeypatch.setattr(nvml.time, "perf_counter", clock)

    class Meter(nvml.Nvml):
        def __init__(self) -> None: ...

        def joules(self) -> float:
            return 1000 + 70 * clock.now

    def call(_: int) -> None:
        clock.now += 0.5

    found = nvml.energy(Meter(), call, 2, 5)
    assert found == {"joules_per_picture": 17.5, "watts": 70.0, "calls": 10}


class FakeNvml(ModuleType):
    """``pynvml`` on a machine with this many GPUs; ``counts``: whether they count energy, ``driver``: whether there is one."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - its name
        pass

    def __init__(self, gpus: int, counts: bool = True, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.gpus, self.counts, self.driver, self.running = gpus, counts, driver, False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
        self.running = True

    def nvmlShutdown(self) -> None:
        self.running = False

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        assert index == 0
        return "GPU 0"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        assert handle == "GPU 0"
        return SimpleNamespace(total=80, free=50, used=30)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU 0"
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return 12_500  # millijoules


def test_the_meter_of_the_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(1)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with nvml.open_nvml() as meter:
        assert isinstance(meter, nvml.Nvml) and library.running
        assert (meter.used(), meter.joules()) == (30, 12.5)
    assert not library.running


@pytest.mark.parametrize(
    ("library", "why"),
    [
        (FakeNvml(2), "NVML reports 2 GPUs"),
        (FakeNvml(1, counts=False), "does not report the energy used (Not Supported)"),
        (FakeNvml(1, driver=False), "no NVIDIA driver here"),
        (None, "not installed: pip install 'visionad[gpu]'"),
    ],
)
def test_no_figure_rather_than_a_wrong_one(monkeypatch: pytest.MonkeyPatch, library: FakeNvml | None, why: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)  # None: it is not installed
    with nvml.open_nvml() as meter:
        found = nvml.energy(meter, lambda _: None, 1, 0)
    assert found["joules_per_picture"] is None and why in found["why_null"]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = shutil.copytree(
        tiny_model, tmp_path_factory.mktemp("report") / "model"
    )  # no test has built engines beside it
    return run_bench(model, Settings(batches=(1, 2), seconds=0, rounds=3, starts=1, threads=1))


@pytest.mark.slow(group="benchmarks")
def test_a_run_without_bank_or_images(report: dict[str, Any]) -> None:
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


@pytest.mark.slow(group="benchmarks")
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


@pytest.mark.slow(group="benchmarks")
def test_a_user_s_bank_and_images_with_torch_beside_and_diagrams(
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


def test_no_more_images_are_held_than_there_is_room_for(
    tiny_model: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "MAX_BYTES", 1)
    wanted = Settings(images=tuple(good), backends=("onnxruntime-cpu",), batches=(2,), seconds=0, rounds=1, starts=0)
    assert run_bench(tiny_model, wanted)["pictures"]["count"] == 1


def test_torch_baselines_compute_what_the_engine_computes(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="torch takes the export extra")
    from visionad_export.reference.torch_baselines import torch_baselines
    from visionad_runtime import Inspector

    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:1])
    assert inspector.bank is not None
    (one,) = inspector.inspect_files(good[1:2], class_name="disc", trace=True)
    assert one.trace is not None and one.result is not None
    stored = inspector.bank.classes["disc"]
    baselines = torch_baselines(inspector.manifest, stored, inspector.scoring, None, 1, ("eager", "method"))
    eager, method = baselines["eager"], baselines["method"]
    assert eager.encode is not None and method.inspect is not None
    tokens: Any = eager.encode(one.trace.views)
    np.testing.assert_allclose(tokens[0], one.trace.tokens.patch, atol=2e-4)
    wanted: Any = method.inspect(good[1])
    assert one.result.score == pytest.approx(wanted.score, abs=1e-4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--backend", "quantum"], "quantum: expected one of tensorrt"),
        (["--batch", "0"], "--batch 0: expected"),
        (["--batch", "a"], "--batch a: expected"),
        (["--reference", "jax"], "expected some of eager, compiled, method"),
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
        (
            ["--plots", "file"],
            "--plots file: expected a folder, which cannot be created: File exists; choose another place",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionad_runtime.tools.benchmark import run as bench_run

    pytest.importorskip("matplotlib", reason="diagrams take the eval extra")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(bench_run, "run_bench", lambda *_, **__: pytest.fail("it measured"))
    assert run(["bench", "model", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_backend_asked_for_that_fails_leaves_the_others_and_none_at_all_is_an_error(
    tiny_model: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionad_runtime.tools.benchmark import run as bench_run

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
    with pytest.raises(VisionADError, match=r"^views nope: expected some of original,flip,clamp, each once$"):
        run_bench(tiny_model, replace(asked, views=("nope",)))


# -- the scripts -------------------------------------------------------------------------------------------------------

SCRIPTS = sorted(
    p for p in BENCHMARKS.rglob("*.py") if "ArgumentParser(" in (text := p.read_text()) and "__main__" in text
)


@pytest.mark.parametrize("script", sorted(BENCHMARKS.rglob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_compiles(script: Path) -> None:
    compile(script.read_text(), str(script), "exec")


@pytest.mark.slow(group="benchmarks")
def test_benchmarks_tell_their_options() -> None:
    """In one process, since most of the time is the imports'. What a script needs may be missing; its options must not be wrong."""
    done = subprocess.run([sys.executable, "-c", HELP, *map(str, SCRIPTS)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


HELP = """
import contextlib, io, runpy, sys
scripts = sys.argv[1:]
for script in scripts:
    sys.argv, said = [script, "--help"], io.StringIO()
    sys.path.insert(0, script.rpartition("/")[0])
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code in (0, None), (script, end.code)
    except ModuleNotFoundError as missing:
        print(f"{script}: {missing}", file=sys.stderr)
        continue
    assert "--help" in said.getvalue(), (script, said.getvalue())
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_gpu_script_parses() -> None:
    script = BENCHMARKS / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
