"""pycuda itself on a pretended driver (``pretend_driver.c``): what ``device.py`` really asks of the driver, without a GPU.

``python -m tests.fakes.pretend_driver`` compiles pycuda and the driver into a folder of the environment, beside what is installed
there: both need a C compiler and CUDA's headers, most of which PyTorch's packages bring. :func:`set_up` loads the two into this
process, so tests on it run in a process of their own (``test_pretend_driver.py``).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

PYCUDA = "2026.1"
HEADERS = ("nvidia-cuda-crt==13.0.*", "nvidia-cuda-profiler-api==13.0.*", "nvidia-cuda-cccl==13.0.*")
FOLDER = Path(sys.prefix) / "pretended" / f"pycuda-{PYCUDA}"
SOURCE = Path(__file__).with_suffix(".c")
DRIVER = "libcuda.so.1"
LIVE = ("buffers", "pinned", "streams", "events", "modules", "graphs", "graphs")
"""The kinds of handle that the driver counts, as :class:`tests.fakes.gpu.FakeDevice` names them."""


# -- install -----------------------------------------------------------------------------------------------------------


def install() -> str:
    """Make :data:`FOLDER`, unless it is there. Returns why it cannot be made, or nothing."""
    if sys.platform != "linux":
        return "the pretended driver is for Linux"
    missing = [tool for tool in ("gcc", "g++", "nm") if shutil.which(tool) is None]
    if missing:
        return f"pycuda cannot be compiled: no {', '.join(missing)}"
    cuda = next((p for p in _packages("nvidia") if (p / "include" / "cuda.h").exists()), None)
    if cuda is None or not (cuda / "include" / "curand.h").exists():
        return "pycuda cannot be compiled: no package here brings cuda.h and curand.h (PyTorch for CUDA does)"
    if not (FOLDER / "pycuda").is_dir():
        part = FOLDER.with_name(f"{FOLDER.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        curand = next((cuda / "lib").glob("libcurand.so.*"))
        (part / "libcurand.so").symlink_to(curand)
        _compile(part / "libcuda.so", "-x", "c", "/dev/null")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # headers that PyTorch's packages lack, and a toolkit has
        subprocess.run([*pip, "--no-deps", "--target", str(part / "headers"), *HEADERS], capture_output=True)
        includes = [cuda / "include", *(part / "headers").glob("nvidia/*/include")]
        includes += sorted(Path("/usr/local").glob("cuda*/include"), reverse=True)
        paths = {"CPATH": ":".join(map(str, includes)), "LIBRARY_PATH": str(part), "CUDA_ROOT": str(cuda)}
        command = [*pip, "--target", str(part), f"pycuda=={PYCUDA}"]
        done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True)
        if done.returncode:
            return f"pycuda does not compile: {done.stderr.strip().splitlines()[-1]}"
        part.rename(FOLDER)
    driver = FOLDER / DRIVER
    if not driver.exists() or driver.stat().st_mtime < SOURCE.stat().st_mtime:
        _compile(driver, str(SOURCE), "-x", "c", str(_stubs()))
    return ""


def _packages(name: str) -> Iterator[Path]:
    """Folders that may hold a toolkit's include and lib."""
    for place in map(Path, sys.path):
        yield from (place / name).glob("cu*")


def _compile(out: Path, *sources: str) -> None:
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{DRIVER}"]
    subprocess.run(["gcc", *flags, "-o", str(out), *sources, "-lpthread"], check=True)


def _stubs() -> Path:
    """C of everything that pycuda links to: weak, so that what the driver does is taken from there."""
    (library,) = (FOLDER / "pycuda").glob("_driver*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    out = FOLDER / "stubs.c"
    names = [name for name in names if name.startswith("cu") and "@" not in name]
    out.write_text("".join(f"__attribute__((weak)) int {name}(void) {{ return 801; }}\n" for name in names))
    return out


# -- use ---------------------------------------------------------------------------------------------------------------


class Pretended:
    """The driver in this process. Kernels are the numpy ones of :mod:`tests.fakes.gpu`, at the addresses they are launched with."""

    capability = (9, 0)

    def __init__(self) -> None:
        self.driver = ctypes.CDLL(str(FOLDER / DRIVER), mode=ctypes.RTLD_GLOBAL)
        self.driver.pretend_fault.restype = ctypes.c_char_p
        self.driver.pretend_holds.argtypes = [ctypes.c_ulonglong, ctypes.c_size_t]
        self.codes: list[tuple[str, dict[str, Any], list[tuple[int, int]]]] = []
        """Loaded code: its kernel, the product's record of it, and offset and size of each argument as the code has them."""
        self.error: BaseException | None = None
        """What a kernel raised."""
        integer, pointer = ctypes.c_int, ctypes.c_void_p
        self._callbacks = (
            ctypes.CFUNCTYPE(integer, pointer)(self._load),
            ctypes.CFUNCTYPE(integer, integer, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t))(self._function),
            ctypes.CFUNCTYPE(
                integer, integer, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, pointer
            )(self._launch),
        )
        self.driver.pretend_callbacks(*(ctypes.cast(c, pointer) for c in self._callbacks))
        sys.path.insert(0, str(FOLDER))  # before one that is installed

    def fault(self) -> str:
        """The first rule that was broken since this was asked last."""
        said: bytes = self.driver.pretend_fault()
        text = said.decode()
        self.driver.pretend_forget_fault()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return text

    def live(self) -> dict[str, int]:
        """How many of what was taken and not given back."""
        counts: dict[str, int] = {}
        for kind, name in enumerate(LIVE):
            counts[name] = counts.get(name, 0) + self.driver.pretend_live(kind)
        counts["contexts"] = self.driver.pretend_contexts()
        return {name: n for name, n in counts.items() if n}

    # what kernels in numpy ask of a device

    def read(self, ptr: int, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """Live memory at an address."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.driver.pretend_holds(ptr, nbytes), f"{nbytes} bytes at {ptr:#x} are in no one buffer"
        return np.frombuffer((ctypes.c_char * nbytes).from_address(ptr), dtype).reshape(shape)

    # callbacks

    def _load(self, image: int) -> int:
        from visionad_runtime.cuda.kernels import choose_target, read_manifest

        head = ctypes.string_at(image, 64)
        if head[:4] != b"\x7fELF":
            return -200
        (sections,) = struct.unpack_from("<Q", head, 40)
        size, count = struct.unpack_from("<HH", head, 58)
        code = ctypes.string_at(image, sections + size * count)
        if compute_capability(code) != self.capability:
            return -209
        targets = read_manifest()["targets"]
        kernels = targets[choose_target(self.capability, list(targets))]
        names = [name[len(".text.") :] for name in elf_sections(code) if name.startswith(".text.")]
        (entry,) = names
        ((kernel, record),) = [(n, r) for n, r in kernels.items() if r["entry"] == entry]
        self.codes.append((kernel, record, parameters(elf_sections(code)[f".nv.info.{entry}"])))
        return len(self.codes) - 1

    def _function(self, number: int, name: bytes, nbytes: Any) -> int:
        _, record, places = self.codes[number]
        if record["entry"] != name.decode():
            return -1
        nbytes[0] = max(offset + size for offset, size in places)
        return number

    def _launch(self, number: int, grid: Any, block: Any, shared: int, arguments: int) -> int:
        from tests.fakes.gpu import FakeDevice

        try:
            kernel, record, places = self.codes[number]
            assert shared == record["shared_bytes"] and tuple(block[:3]) == (record["threads"], 1, 1)
            types = {"pointer": np.uint64, "null": np.uint64, "i32": np.int32, "fp32": np.float32}
            values = [
                np.frombuffer(ctypes.string_at(arguments + offset, size), types[kind])[0]
                for kind, (offset, size) in zip(record["arguments"], places, strict=True)
            ]
            for kind, value in zip(record["arguments"], values, strict=True):
                assert kind != "null" or value == 0
                assert kind != "pointer" or self.driver.pretend_holds(int(value), 1), (
                    f"{kernel}: {value:#x} is nobody's"
                )
            FakeDevice.kernels[kernel](self, tuple(grid[:3]), tuple(block[:3]), *values)  # type: ignore[arg-type]
        except BaseException as exc:
            self.error = self.error or exc
            return 1
        return 0


def compute_capability(code: bytes) -> tuple[int, int]:
    """What a cubin is for, by the flags of its header."""
    (flags,) = struct.unpack_from("<I", code, 48)
    number = (flags >> 8 if code[8] >= 8 else flags) & 0xFF
    return number // 10, number % 10


def elf_sections(code: bytes) -> dict[str, bytes]:
    """Sections of a 64-bit ELF file by name."""
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<HHH", code, 58)
    heads = [struct.unpack_from("<IIQQQQ", code, start + size * i) for i in range(count)]
    strings = heads[names][4]
    return {
        code[strings + head[0] : code.index(b"\0", strings + head[0])].decode(): code[head[4] : head[4] + head[5]]
        for head in heads
        if head[1] != 8  # no bits in the file
    }


def parameters(info: bytes) -> list[tuple[int, int]]:
    """Offset and size of each kernel argument, by a cubin's ``.nv.info`` (EIATTR_KPARAM_INFO)."""
    found, at = {}, 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # with a payload
            if attribute == 0x17:
                _, ordinal, offset, flags = struct.unpack_from("<IHHI", info, at)
                found[ordinal] = offset, flags >> 18
            at += size
    return [found[i] for i in range(len(found))]


_set_up: list[Pretended] = []


def set_up() -> Pretended:
    """The driver, loaded into this process for good."""
    if not _set_up:
        _set_up.append(Pretended())
    return _set_up[0]


if __name__ == "__main__":
    sys.stdout.write((install() or f"pycuda on a pretended driver: {FOLDER}") + "\n")
