"""The search's machine code: which build a CPU takes, that the product is what the source gives, that a wrong one is not used, and
the build for Arm in an emulator. What the builds find is tested in ``test_search.py``."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import unit
from numpy.typing import NDArray
from test_search import near_ties, patches
from visionad_runtime import cpu, doctor, search
from visionad_runtime.errors import VisionADError

F32 = NDArray[np.float32]
V3 = "fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe"
needs_build = pytest.mark.skipif(not cpu.here(), reason="no build runs on this CPU and system")


@pytest.mark.parametrize(
    ("machine", "flags", "wanted"),
    [
        ("x86_64", V3 + " avx512f avx512bw avx512cd avx512dq avx512vl", ["x86-64-v4", "x86-64-v3", "x86-64"]),
        ("x86_64", V3 + " avx512f avx512cd avx512er avx512pf", ["x86-64-v3", "x86-64"]),  # Xeon Phi
        ("x86_64", V3, ["x86-64-v3", "x86-64"]),
        ("x86_64", "fpu sse2 avx", ["x86-64"]),
        ("x86_64", "", ["x86-64"]),
        ("aarch64", "", ["aarch64"]),
        ("armv7l", "neon", []),
        ("riscv64", "", []),
    ],
)
def test_a_cpu_takes_the_best_build_that_it_can_run(machine: str, flags: str, wanted: list[str]) -> None:
    assert cpu.fitting(machine, flags.split()) == wanted


def test_nothing_is_loaded_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert cpu.here() == []


def test_the_product_is_what_the_source_gives() -> None:
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    builder = pytest.importorskip("visionad_export.kernels.cpu")
    built = builder.build()
    assert set(built) == set(cpu.BUILDS)
    assert builder.check(built) == []
    if builder.compiler() == builder.committed()["compiler"]:  # else their bytes differ anyway
        assert builder.check(built | {"aarch64": built["x86-64"]}) == ["aarch64.so is not what search.c gives"]


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="the compiler is not installed")
    builder = pytest.importorskip("visionad_export.kernels.cpu")
    source = tmp_path / "search.c"
    source.write_text(builder.SOURCE.read_text().replace("ROOM = 64", "ROOM = 65"))
    monkeypatch.setattr(builder, "SOURCE", source)
    assert any("source_sha256" in line for line in builder.check(builder.build(("x86-64",))))
    source.write_text("int error")
    with pytest.raises(VisionADError, match=r"search\.c for x86-64: .*error"):
        builder.build(("x86-64",))


def test_no_build_needs_another_library() -> None:
    """Then any libc will do, and none at all in an emulator."""
    for name in cpu.BUILDS:
        elf = Elf((cpu.FOLDER / f"{name}.so").read_bytes())
        assert elf.undefined == [] and elf.needed == 0
        assert {"visionad_panel", "visionad_search", "visionad_merge", "visionad_exact"} == set(elf.symbols)


@needs_build
def test_a_damaged_or_missing_build_is_named_and_the_next_one_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cpu"
    shutil.copytree(cpu.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cpu, "FOLDER", folder)
    queries, bank = unit(0, 9, 40), unit(1, 70, 40)
    wanted = search.nearest(queries, bank)
    for name in cpu.here():
        library = folder / f"{name}.so"
        library.write_bytes(library.read_bytes()[:-1] + b"?")
        with pytest.raises(VisionADError, match=rf"{name}\.so is damaged; install visionad again"):
            cpu.Library(name)
        library.unlink()
        with pytest.raises(VisionADError, match=rf"{name}\.so cannot be loaded .*; install visionad again"):
            cpu.Library(name)
        found, unfit = search.machine_code.__wrapped__()
        rest = cpu.here()[cpu.here().index(name) + 1 :]
        assert (found.name if found else None) == (rest[0] if rest else None)
        assert f"{name}.so cannot be loaded" in unfit[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "machine_code", lambda result=(found, unfit): result)
            np.testing.assert_array_equal(search.nearest(queries, bank), wanted)
            report = doctor.diagnose()
        assert report["search"] == (rest[0] if rest else None)
        assert any(f"{name}.so cannot be loaded" in problem for problem in report["problems"])
        assert (f"Search   machine code {rest[0]}" if rest else "Search   NumPy") in doctor.format_report(report)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(VisionADError, match="cannot be loaded"):
        cpu.Library(cpu.here()[0])


@needs_build
@pytest.mark.parametrize("part", ["score", "row", "finite"])
def test_a_build_that_errs_here_is_not_used(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.Library.nearest

    def wrong(*args: Any) -> cpu.Found:
        found = right(*args)
        if part == "finite":
            return found._replace(finite=False)
        changed = getattr(found, part).copy()
        changed[7] = np.nextafter(changed[7], 2) if part == "score" else changed[7] + 1
        return found._replace(**{part: changed})

    monkeypatch.setattr(cpu.Library, "nearest", wrong)
    found, unfit = search.machine_code.__wrapped__()
    assert found is None and [line.split()[3] for line in unfit] == cpu.here()
    assert "gives other neighbours than NumPy on this box" in unfit[0]


@needs_build
def test_several_searches_at_once_do_not_disturb_each_other() -> None:
    library = cpu.Library(cpu.here()[0])
    queries, banks = patches(1, 70, 96), [patches(i, 500 + i, 96) for i in range(4)]
    wanted = [library.nearest(queries, bank, 2, search._slack(96), 1) for bank in banks]
    failed = []

    def work(i: int) -> None:
        for threads in (1, 2, 3) * 10:
            found = library.nearest(queries, banks[i], 2, search._slack(96), threads)
            if not (np.array_equal(found.row, wanted[i].row) and np.array_equal(found.score, wanted[i].score)):
                failed.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


class Elf:
    """What the tests need of a 64-bit shared library."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.segments: list[tuple[int, bytes, int]] = []  # address, content, size
        self.symbols: dict[str, int] = {}
        self.undefined: list[str] = []
        self.needed = 0
        programs, sections = struct.unpack_from("<QQ", data, 32)
        size, count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
        for i in range(count):
            kind, _, offset, address, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", data, programs + i * size)
            if kind == 1:  # PT_LOAD
                self.segments.append((address, data[offset : offset + in_file], in_memory))
            if kind == 2:  # PT_DYNAMIC
                tags = struct.unpack_from(f"<{in_file // 8}Q", data, offset)[::2]
                self.needed = tags[: tags.index(0)].count(1)
                assert not {7, 17, 23} & set(tags[: tags.index(0)])  # RELA, REL, JMPREL: nothing to relocate
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + i * section_size) for i in range(section_count)]
        for _, kind, _, _, offset, length, link, *_ in headers:
            if kind != 11:  # SHT_DYNSYM
                continue
            names = headers[link][4]
            for at in range(offset + 24, offset + length, 24):
                name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
                text = data[names + name : data.index(b"\0", names + name)].decode()
                if section:
                    self.symbols[text] = value
                else:
                    self.undefined.append(text)


class Arm:
    """The build for 64-bit Arm in an emulator. Arrays end where memory does: reading one number too far fails."""

    PAGE = 4096

    def __init__(self) -> None:
        unicorn = pytest.importorskip("unicorn", reason="the emulator is not installed")
        from unicorn import arm64_const

        self.registers = arm64_const
        self.emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.emulator.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors are allowed
        self.elf = Elf((cpu.FOLDER / "aarch64.so").read_bytes())
        self.base, self.free = 0x10000000, 0x40000000
        for address, content, size in self.elf.segments:
            start = (self.base + address) // self.PAGE * self.PAGE
            end = -(-(self.base + address + size) // self.PAGE) * self.PAGE
            self.emulator.mem_map(start, end - start)
            self.emulator.mem_write(self.base + address, content)
        self.stack = self.room(1 << 20) + (1 << 20) - 4096
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
        for i, value in enumerate(args):
            self.emulator.reg_write(getattr(self.registers, f"UC_ARM64_REG_X{i}"), value)
        self.emulator.reg_write(self.registers.UC_ARM64_REG_SP, self.stack)
        self.emulator.reg_write(self.registers.UC_ARM64_REG_LR, self.end)
        self.emulator.emu_start(self.base + self.elf.symbols[name], self.end)
        return int(self.emulator.reg_read(self.registers.UC_ARM64_REG_X0))

    def nearest(
        self, queries: F32, rows: F32, k: int, stretch: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
        """By two "threads", of which the second finds nothing left to do but what the first left."""
        score, row = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        cut = np.full(len(queries), -np.inf, np.float32)
        slack = search._slack(rows.shape[1])
        fields = struct.pack(
            "<QQqqqqqdQqqq", self.put(queries), self.put(rows), len(queries), len(rows), rows.shape[1], k, stretch, slack,
            self.put(cut), 0, 0, 0,
        )  # fmt: skip
        shared = self.put(np.frombuffer(fields, np.uint8))
        panel = self.room(self.call("visionad_panel") * rows.shape[1] * 4)
        mine, other = ((self.put(score), self.put(row)) for _ in range(2))
        self.call("visionad_search", shared, *mine, panel)
        self.call("visionad_search", shared, *other, panel)
        self.call("visionad_merge", len(queries), k, *mine, *other)
        broken = struct.unpack("<q", self.emulator.mem_read(shared + len(fields) - 8, 8))[0]
        return self.get(mine[0], score), self.get(mine[1], row), bool(broken)


@pytest.mark.parametrize("make", [unit, near_ties, patches])
@pytest.mark.parametrize(
    ("count", "rows", "dim", "k", "stretch"),
    [
        (1, 1, 1, 1, 1),
        (15, 7, 3, 2, 2),
        (16, 64, 97, 1, 64),
        (17, 100, 40, 9, 13),
        (50, 301, 64, 1, 100),
        (33, 200, 384, 3, 200),
    ],
)
def test_the_build_for_arm_finds_the_same(make: Any, count: int, rows: int, dim: int, k: int, stretch: int) -> None:
    arm = Arm()
    queries, bank = make(1, count, dim), make(2, rows, dim)
    score, row, broken = arm.nearest(queries, bank, k, stretch)
    wanted_score, wanted_row = search._search_numpy(queries, bank, k)
    np.testing.assert_array_equal(row, wanted_row)
    np.testing.assert_array_equal(score, wanted_score)
    assert not broken
    pairs = np.random.default_rng(0).integers(0, [[count], [rows]], (2, 20))
    exact = np.empty(20)
    at = arm.put(exact)
    arm.call("visionad_exact", arm.put(queries), arm.put(bank), dim, arm.put(pairs[0]), arm.put(pairs[1]), 20, at)
    np.testing.assert_array_equal(arm.get(at, exact), search._exact_numpy(queries, bank, *pairs))
    for value in (np.nan, np.inf, -np.inf):
        broken_queries, broken_bank = queries.copy(), bank.copy()
        broken_queries[-1] = broken_bank[-1] = value
        assert arm.nearest(queries, broken_bank, k, stretch)[2]
        # Lanes beyond the last query repeat it: their scores are no candidates of anybody's, Inf neither.
        assert arm.nearest(broken_queries, bank, k, stretch)[2]


def test_the_manifest_describes_what_lies_there() -> None:
    builds = json.loads((cpu.FOLDER / "manifest.json").read_bytes())["builds"]
    assert set(builds) == set(cpu.BUILDS) == {path.stem for path in cpu.FOLDER.glob("*.so")}
