"""Native code of the search: which build a CPU takes, that the libraries are what the source gives, that a wrong one is not used.

The builds for Windows and for Arm run here too: the code as it lies in the file, called as its own system calls it, Arm's in an
emulator. What the builds for this system find is tested in ``test_search.py``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import search
from visionad_runtime.errors import VisionADError
from visionad_runtime.search import native
from visionad_runtime.search.numpy_search import error_bound, search_numpy
from visionad_runtime.search.pruning import orthonormalized
from visionad_runtime.tools import doctor

from tests.data import near_ties, patches, unit

F32 = NDArray[np.float32]
FILES = [native.file_name(name, system) for name, build in native.BUILDS.items() for system in build.systems]
FUNCTIONS = {f"visionad_{name}" for name in ("level", "panel", "scratch", "search", "merge", "product")}
SYSTEM = {ending: system for system, ending in native.SYSTEMS.items()}
V3 = "pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt osxsave avx f16c bmi1 avx2 bmi2 lahf_lm abm"
here = native.supported_builds()
needs_build = pytest.mark.skipif(not here, reason="no build runs on this CPU and system")


@pytest.mark.parametrize(
    ("machine", "system", "level", "expected"),
    [
        ("x86_64", "win32", 3, ["x86-64-v3"]),
        ("x86_64", "win32", 1, []),
        ("x86_64", "darwin", 3, []),
        ("x86_64", "linux", 3, ["x86-64-v3", "x86-64"]),
        ("x86_64", "linux", 1, ["x86-64"]),
        ("aarch64", "linux", 1, ["aarch64"]),
        ("aarch64", "win32", 1, []),
        ("x86_64", "freebsd14", 1, []),
        ("armv7l", "linux", 1, []),
        ("riscv64", "linux", 1, []),
        ("", "linux", 1, []),
    ],
)
def test_a_cpu_takes_the_best_build_that_it_can_run(machine: str, system: str, level: int, expected: list[str]) -> None:
    assert native.compatible_builds(machine, system, level) == expected


@pytest.mark.parametrize(
    ("system", "says", "process", "expected"),
    [
        ("linux", "x86_64", "linux-x86_64", "x86_64"),
        ("linux", "aarch64", "linux-aarch64", "aarch64"),
        ("win32", "AMD64", "win-amd64", "x86_64"),
        ("win32", "ARM64", "win-arm64", ""),
        ("win32", "ARM64", "win-amd64", "x86_64"),  # emulated
        ("win32", "AMD64", "win32", ""),
    ],
)
def test_the_machine_is_the_one_of_this_process(
    system: str, says: str, process: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: says)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: process)
    assert native.process_machine() == expected
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert native.process_machine() == ""


@pytest.mark.slow(group="cpu-builds")
def test_the_product_is_what_the_source_gives() -> None:
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    builder = pytest.importorskip("visionad_export.kernels.cpu")
    built = builder.build()
    assert list(built) == FILES
    assert builder.check(built) == []
    if builder.compiler() == builder.committed()["compiler"]:  # else their bytes differ anyway
        assert builder.check(built | {"aarch64.so": built["x86-64.so"]}) == [
            "aarch64.so differs from what search.c compiles to"
        ]


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    builder = pytest.importorskip("visionad_export.kernels.cpu")
    source = tmp_path / "search.c"
    source.write_text(builder.SOURCE.read_text().replace("MAX_CANDIDATES = 64", "MAX_CANDIDATES = 65"))
    monkeypatch.setattr(builder, "SOURCE", source)
    assert any("source_sha256" in line for line in builder.check(builder.build([("x86-64", "linux")])))
    source.write_text("int error")
    with pytest.raises(VisionADError, match=r"search\.c for x86-64\.so: .*error"):
        builder.build([("x86-64", "linux")])


def test_the_manifest_describes_what_lies_there() -> None:
    builds = json.loads((native.FOLDER / "manifest.json").read_bytes())["builds"]
    assert set(builds) == set(FILES) == {p.name for p in native.FOLDER.iterdir() if p.suffix[1:] in SYSTEM}
    for name, record in builds.items():
        assert record["sha256"] == hashlib.sha256((native.FOLDER / name).read_bytes()).hexdigest()


@needs_build
def test_a_damaged_or_missing_build_is_named_and_the_next_one_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib"
    shutil.copytree(native.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(native, "FOLDER", folder)
    queries, bank = unit(0, 9, 40), unit(1, 70, 40)
    expected = search.nearest(queries, bank)
    for i, name in enumerate(here):
        library = folder / native.file_name(name, sys.platform)
        library.write_bytes(library.read_bytes()[:-1] + b"?")
        with pytest.raises(VisionADError, match=rf"{name}\.so is damaged; install visionad again"):
            native.Library(name)
        library.unlink()
        with pytest.raises(VisionADError, match=rf"{name}\.so cannot be loaded .*; install visionad again"):
            native.Library(name)
        found, unfit = native.native_library.__wrapped__()
        rest = here[i + 1 :]
        assert (found.name if found else None) == (rest[0] if rest else None)
        assert f"{name}.so cannot be loaded" in unfit[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "native_library", lambda result=(found, unfit): result)
            np.testing.assert_array_equal(search.nearest(queries, bank), expected)
            report = doctor.diagnose()
        assert report["search"] == (rest[0] if rest else None)
        assert any(f"{name}.so cannot be loaded" in problem for problem in report["problems"])
        assert (f"Search   machine code {rest[0]}" if rest else "Search   NumPy") in doctor.format_report(report)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(VisionADError, match="cannot be loaded"):
        native.Library(here[0])


@needs_build
def test_without_the_build_that_tells_what_the_cpu_is_none_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib"
    shutil.copytree(native.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / native.file_name(here[-1], sys.platform)).unlink()
    monkeypatch.setattr(native, "FOLDER", folder)
    found, unfit = native.native_library.__wrapped__()
    assert found is None and len(unfit) == 1 and f"{here[-1]}.so cannot be loaded" in unfit[0]


@needs_build
@pytest.mark.parametrize("part", ["score", "row", "finite"])
def test_a_build_that_errs_here_is_not_used(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.Library.nearest

    def wrong(*args: Any) -> native.NativeResult:
        found = right(*args)
        if part == "finite":
            return found._replace(finite=False)
        changed = getattr(found, part).copy()
        changed[7] = np.nextafter(changed[7], 2) if part == "score" else changed[7] + 1
        return found._replace(**{part: changed})

    monkeypatch.setattr(native.Library, "nearest", wrong)
    found, unfit = native.native_library.__wrapped__()
    assert found is None and [line.split()[3] for line in unfit] == here
    assert "gives other neighbors than NumPy on this machine" in unfit[0]


@needs_build
def test_several_searches_at_once_do_not_disturb_each_other() -> None:
    library = native.Library(here[0])
    queries, banks = patches(1, 70, 96), [patches(i, 500 + i, 96) for i in range(4)]
    expected = [library.nearest(queries, bank, 2, error_bound(96), 1) for bank in banks]
    failed = []

    def work(i: int) -> None:
        for threads in (1, 2, 3) * 10:
            found = library.nearest(queries, banks[i], 2, error_bound(96), threads)
            if not (np.array_equal(found.row, expected[i].row) and np.array_equal(found.score, expected[i].score)):
                failed.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


class Image:
    """A library's code and constants as they lie in memory, whatever system it is for, and where its functions are."""

    def __init__(self, name: str) -> None:
        lief = pytest.importorskip("lief", reason="what reads other systems' libraries is not installed")
        library = lief.parse(native.FOLDER / name)
        assert not list(library.relocations)
        self.libraries = [str(getattr(needed, "name", needed)) for needed in library.libraries]
        self.functions = {f.name: f.address for f in library.exported_functions if "visionad" in f.name}
        if name.endswith(".dll"):
            parts = list(library.sections)
        else:
            parts = [s for s in library.segments if s.type == lief.ELF.Segment.TYPE.LOAD]
        self.parts = [(p.virtual_address, bytes(p.content)) for p in parts]
        self.size = max(p.virtual_address + p.virtual_size for p in parts)


@pytest.mark.parametrize("name", FILES)
def test_no_build_needs_another_library(name: str) -> None:
    """Then any C library will do, and none at all in an emulator."""
    image = Image(name)
    assert set(image.functions) == FUNCTIONS
    assert image.libraries == []


class Emulator:
    """A build in an emulator. Arrays end where memory does: reading one number too far fails."""

    PAGE = 4096

    def __init__(self, name: str) -> None:
        self.unicorn = unicorn = pytest.importorskip("unicorn", reason="the emulator is not installed")
        from unicorn import arm64_const, x86_const

        self.arm, self.x86 = arm64_const, x86_const
        self.is_arm = name.startswith("aarch64")
        if self.is_arm:
            self.emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
            self.emulator.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors are allowed
        else:
            self.emulator = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
            self.emulator.ctl_set_cpu_model(x86_const.UC_CPU_X86_QEMU64)  # knows no AVX, BMI, MOVBE
        self.image = Image(name)
        self.base, self.free = 0x10000000, 0x40000000
        self.emulator.mem_map(self.base, -(-self.image.size // self.PAGE) * self.PAGE)
        for address, content in self.image.parts:
            self.emulator.mem_write(self.base + address, content)
        self.stack = self.room(1 << 16) + (1 << 16) - 4096  # less than the threads of any system have
        self.end = self.room(16)

    def room(self, size: int) -> int:
        pages = -(-size // self.PAGE)
        self.emulator.mem_map(self.free, pages * self.PAGE)
        address = self.free + pages * self.PAGE - size
        self.free += (pages + 1) * self.PAGE
        return address

    def put(self, array: NDArray[Any]) -> int:
        address = self.room(array.nbytes)
        self.emulator.mem_write(address, array.tobytes())
        return address

    def get(self, address: int, like: NDArray[Any]) -> NDArray[Any]:
        return np.frombuffer(bytes(self.emulator.mem_read(address, like.nbytes)), like.dtype).reshape(like.shape)

    def call(self, name: str, *args: int) -> int:
        write, read = self.emulator.reg_write, self.emulator.reg_read
        start = self.base + self.image.functions[name]
        if not self.is_arm:
            assert not args
            self.emulator.mem_write(self.stack - 8, struct.pack("<Q", self.end))
            write(self.x86.UC_X86_REG_RSP, self.stack - 8)
            self.emulator.emu_start(start, self.end)
            return int(read(self.x86.UC_X86_REG_RAX))
        names = (*(f"X{i}" for i in range(19, 30)), *(f"D{i}" for i in range(8, 16)))
        kept = {getattr(self.arm, f"UC_ARM64_REG_{n}"): 0xABCD0000 + i for i, n in enumerate(names)}
        for register, value in kept.items():
            write(register, value)
        for i, value in enumerate(args):
            write(getattr(self.arm, f"UC_ARM64_REG_X{i}"), value)
        write(self.arm.UC_ARM64_REG_SP, self.stack)
        write(self.arm.UC_ARM64_REG_LR, self.end)
        self.emulator.emu_start(start, self.end)
        assert {register: read(register) for register in kept} == kept
        return int(read(self.arm.UC_ARM64_REG_X0))

    def nearest(
        self, queries: F32, rows: F32, k: int, row_chunk: int, projections: tuple[int, int, int] = (0, 0, 0)
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
        """By two "threads", of which the second finds nothing left to do but what the first left."""
        score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        lower_bound = np.full(len(queries), -np.inf, np.float32)
        panels = -(-len(queries) // self.call("visionad_panel"))
        fields = struct.pack(
            "<QQqQQqqqqqdQQqqq", self.put(queries), self.put(rows), rows.shape[1], *projections, len(queries), len(rows), k,
            row_chunk, error_bound(rows.shape[1]), self.put(lower_bound), self.put(np.zeros(panels, np.uint8)), 0, 0, 0,
        )  # fmt: skip
        shared = self.put(np.frombuffer(fields, np.uint8))
        scratch = self.room(self.call("visionad_scratch", rows.shape[1]))
        mine, other = ((self.put(score), self.put(row)) for _ in range(2))
        self.call("visionad_search", shared, *mine, scratch)
        self.call("visionad_search", shared, *other, scratch)
        self.call("visionad_merge", len(queries), k, *mine, *other)
        not_finite = struct.unpack("<q", self.emulator.mem_read(shared + len(fields) - 8, 8))[0]
        return self.get(mine[0], score), self.get(mine[1], row), bool(not_finite)

    def project(self, rows: F32, components: NDArray[np.float64]) -> int:
        out = self.room(len(rows) * components.shape[1] * 4)
        self.call("visionad_product", self.put(rows), *rows.shape, self.put(components), components.shape[1], 1, out)
        return out


def some_components(dim: int) -> NDArray[np.float64]:
    components = np.zeros((dim, 16))
    components[:, :-1] = orthonormalized(np.random.default_rng(0).standard_normal((dim, 15)))
    return components


def rest(rows: F32, components: NDArray[np.float64]) -> NDArray[np.float64]:
    """What components leave of rows: lengths."""
    return np.asarray(np.linalg.norm(rows - rows @ components @ components.T, axis=1))


SIZES = [
    (1, 1, 1, 1, 1),
    (15, 7, 3, 2, 2),
    (16, 64, 97, 1, 64),
    (17, 100, 40, 9, 13),
    (50, 301, 64, 1, 100),
    (33, 200, 384, 3, 200),
]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("aarch64")])
@pytest.mark.parametrize("make", [unit, near_ties, patches])
@pytest.mark.parametrize(("count", "rows", "dim", "k", "row_chunk"), SIZES)
def test_the_builds_for_arm_find_the_same(
    make: Any, count: int, rows: int, dim: int, k: int, row_chunk: int, name: str
) -> None:
    arm = Emulator(name)
    queries, bank = make(1, count, dim), make(2, rows, dim)
    score, row, broken = arm.nearest(queries, bank, k, row_chunk)
    wanted_score, wanted_row = search_numpy(queries, bank, k)
    np.testing.assert_array_equal(row, wanted_row)
    np.testing.assert_array_equal(score, wanted_score)
    assert not broken
    if dim > 24:
        components = some_components(dim)
        projections = [arm.project(x, components) for x in (queries, bank)]
        for address, x in zip(projections, (queries, bank), strict=True):
            made = arm.get(address, np.empty((len(x), 16), np.float32))
            np.testing.assert_allclose(
                made, np.column_stack([x @ components[:, :-1], rest(x, components)]), rtol=0, atol=4e-6
            )
        score, row, _ = arm.nearest(queries, bank, k, row_chunk, (*projections, 16))
        np.testing.assert_array_equal(row, wanted_row)
        np.testing.assert_array_equal(score, wanted_score)
    for value in (np.nan, np.inf, -np.inf):
        broken_queries, broken_bank = queries.copy(), bank.copy()
        broken_queries[-1] = broken_bank[-1] = value
        assert arm.nearest(queries, broken_bank, k, row_chunk)[2]
        # Lanes beyond the last query repeat it: their scores are no candidates of anybody's, Inf neither.
        assert arm.nearest(broken_queries, bank, k, row_chunk)[2]
    assert arm.call("visionad_level") == 1


CPUID = {
    1: {"ecx": {"pni": 0, "ssse3": 9, "fma": 12, "cx16": 13, "sse4_1": 19, "sse4_2": 20, "movbe": 22, "popcnt": 23,
                "osxsave": 27, "avx": 28, "f16c": 29}},
    7: {"ebx": {"bmi1": 3, "avx2": 5, "bmi2": 8, "avx512f": 16, "avx512bw": 30}},
    0x80000001: {"ecx": {"lahf_lm": 0, "abm": 5}},
}  # fmt: skip
"""Where a CPU says what it has, by Linux's names (arch/x86/include/asm/cpufeatures.h)."""


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("x86-64")])
@pytest.mark.parametrize(
    ("flags", "kept", "leaves", "level"),
    [
        (V3 + " avx512f avx512bw avx512_vnni amx_tile", 0x602E7, 0x20, 3),
        (V3, 0x03, 0x1F, 1),  # a system that does not save AVX's registers
        (V3.replace(" osxsave", ""), 0, 0x1F, 1),
        (V3, 0x07, 0x0D, 3),
        (V3.replace(" fma", ""), 0x07, 0x0D, 1),  # VIA's
        (V3.replace(" avx2 bmi2", "").replace(" bmi1", ""), 0x07, 0x0D, 1),
        (V3, 0x07, 6, 1),
        ("pni", 0, 1, 1),
        *((V3.replace(flag, "-"), 0x07, 0x0D, 1) for flag in ("movbe", "bmi1", "bmi2", "f16c", "abm", "popcnt")),
    ],
)
def test_the_level_of_a_cpu(flags: str, kept: int, leaves: int, level: int, name: str) -> None:
    run = Emulator(name)
    x86 = run.x86
    has, asked = set(flags.split()), []

    def step(emulator: Any, address: int, size: int, _: Any) -> None:
        """In the place of the emulator's CPU, which has none of all that and would refuse instructions that need it."""
        size = size if size < 16 else 3  # larger for xgetbv, which the emulator's CPU refuses
        code = bytes(emulator.mem_read(address, size))
        if code == b"\x0f\xa2":  # cpuid
            leaf = emulator.reg_read(x86.UC_X86_REG_EAX)
            assert leaf in (0, 0x80000000) or emulator.reg_read(x86.UC_X86_REG_ECX) == 0
            asked.append(leaf)
            found = {"eax": {0: leaves, 0x80000000: 0x80000008}.get(leaf, 0)}
            for register, bits in CPUID.get(leaf, {}).items():
                found[register] = sum(1 << bit for flag, bit in bits.items() if flag in has)
            for register in ("eax", "ebx", "ecx", "edx"):
                emulator.reg_write(getattr(x86, f"UC_X86_REG_R{register[1].upper()}X"), found.get(register, 0))
        elif code == b"\x0f\x01\xd0":  # xgetbv
            assert "osxsave" in has and emulator.reg_read(x86.UC_X86_REG_ECX) == 0
            emulator.reg_write(x86.UC_X86_REG_RAX, kept)
            emulator.reg_write(x86.UC_X86_REG_RDX, 0)
        else:
            return
        emulator.reg_write(x86.UC_X86_REG_RIP, address + size)

    run.emulator.hook_add(run.unicorn.UC_HOOK_CODE, step)
    assert run.call("visionad_level") == level
    assert 0 in asked


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="Linux on x86-64 only")
def test_the_level_of_this_cpu_is_what_linux_says() -> None:
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    flags = set(line.split()) | {"osxsave"}  # Linux lists the others only if this is there
    levels = [level for level, expected in ((1, ""), (3, V3)) if set(expected.split()) <= flags]
    assert {native.Library(name).level for name in here} == {max(levels)}


TO_WINDOWS = """
typedef long long word;
typedef word __attribute__((ms_abi)) function(word, word, word, word, word, word, word);
word call(function *f, word a, word b, word c, word d, word e, word g, word h) { return f(a, b, c, d, e, g, h); }
"""


class Mapped:
    """A library for Windows in this process: what ``ctypes.CDLL`` would be there."""

    def __init__(self, path: str, caller: ctypes.CDLL) -> None:
        image, self.functions = Image(Path(path).name), dict[str, Any]()
        self.memory = mmap.mmap(-1, image.size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        for address, content in image.parts:
            self.memory[address : address + len(content)] = content
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for name, address in image.functions.items():
            self.functions[name] = FromWindows(base + address, caller, self.memory)

    def __getitem__(self, name: str) -> Any:
        return self.functions[name]


class FromWindows:
    """A function that is called as Windows does."""

    def __init__(self, address: int, caller: ctypes.CDLL, memory: mmap.mmap) -> None:
        self.address, self.caller = address, caller
        self.memory = memory  # must live as long as the function
        self.argtypes: tuple[Any, ...] = ()
        self.restype: Any = None

    def __call__(self, *args: Any) -> Any:
        call = self.caller["call"]  # a function object of its own
        call.argtypes = (ctypes.c_void_p, *self.argtypes, *[ctypes.c_int64] * (7 - len(self.argtypes)))
        call.restype = self.restype
        return call(self.address, *args, *[0] * (7 - len(args)))


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    folder = tmp_path_factory.mktemp("caller")
    (folder / "call.c").write_text(TO_WINDOWS)
    command = [sys.executable, "-m", "ziglang", "cc", "-O1", "-shared", "-nostdlib", "call.c", "-o", "call.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "call.so"))


@pytest.mark.skipif(native.process_machine() != "x86_64" or sys.platform != "linux", reason="x86-64 Linux only")
@pytest.mark.skipif("x86-64-v3" not in here, reason="this CPU cannot run the build")
def test_the_build_for_windows_finds_the_same(caller: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: Mapped(path, caller))
    monkeypatch.setattr(native, "process_machine", lambda: "x86_64")
    assert native.supported_builds() == ["x86-64-v3"]
    library = native.Library("x86-64-v3")
    monkeypatch.undo()
    assert library.level == native.Library("x86-64").level
    for make in (unit, near_ties, patches):
        for count, rows, dim, k, _ in (*SIZES, (100, 3000, 192, 2, 0)):
            queries, bank = make(1, count, dim), make(2, rows, dim)
            wanted_score, wanted_row = search_numpy(queries, bank, k)
            for threads in (1, 3):
                found = library.nearest(queries, bank, k, error_bound(dim), threads)
                np.testing.assert_array_equal(found.row, wanted_row)
                np.testing.assert_array_equal(found.score, wanted_score)
                assert found.finite
                if dim > 24:
                    components = some_components(dim)
                    projections = [library.project(x, components, threads) for x in (queries, bank)]
                    np.testing.assert_allclose(projections[1][:, -1], rest(bank, components), rtol=0, atol=4e-6)
                    found = library.nearest(
                        queries, bank, k, error_bound(dim), threads, (projections[0], projections[1])
                    )
                    np.testing.assert_array_equal(found.row, wanted_row)
                    np.testing.assert_array_equal(found.score, wanted_score)
