"""The fake GPU with the kernels' own source: every launch runs it by Triton's interpreter, with the arguments that the product's
manifest says. So what the host passes and what the source takes are held together, which numpy stand-ins cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter
from visionad_export.kernels import build, source
from visionad_runtime.cuda.kernels import read_manifest

from tests.fakes.gpu import FakeBuffer, FakeDevice, Kernel

CAPABILITY = (9, 0)
TYPES = {
    "*fp16": np.float16,
    "*fp32": np.float32,
    "*fp64": np.float64,
    "*i32": np.int32,
    "*i64": np.int64,
    "*u8": np.uint8,
}


@contextmanager
def without_waste() -> Iterator[pytest.MonkeyPatch]:
    """For one launch: the interpreter without what takes most of its time and changes nothing. At every call of a function within a
    kernel, `tl.sum` for one, it looks through all of Triton's language for what it has to replace, which it replaced at that
    function's first call; and every sum of integers is formed in 64 bits too, for a check that `debug` turns on and that is off."""
    plain: Callable[[Any], Any] = interpreter._patch_lang
    seen: set[Any] = set()

    def patch_lang(function: Any) -> Any:
        if function in seen:
            return interpreter._LangPatchScope()
        seen.add(function)
        return plain(function)

    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_lang)
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield patch


class InterpretedDevice(FakeDevice):
    """Its buffers lie at their real addresses, because the work tables hold addresses and the interpreter follows them."""

    def alloc(self, nbytes: int) -> FakeBuffer:
        buffer = super().alloc(nbytes)
        whole = np.full(nbytes + 256, 0x5A, np.uint8)
        at = -whole.ctypes.data % 256
        del self._buffers[buffer.ptr]
        buffer.bytes = whole[at : at + nbytes]
        buffer.ptr = buffer.bytes.ctypes.data
        self._buffers[buffer.ptr] = buffer
        return buffer


def set_up() -> type[InterpretedDevice]:
    """Small enough to be interpreted: three multiprocessors."""
    FakeDevice.reset()
    FakeDevice.gpu |= {"name": "interpreter", "capability": CAPABILITY, "multiprocessors": 3}
    FakeDevice.kernels = {name: interpreted(name) for name in build.variants(90)}
    return InterpretedDevice


def interpreted(name: str) -> Kernel:
    """A kernel of the source, called as the driver would call the product of compute capability 9.0."""
    record = read_manifest()["targets"]["sm_90"][name]
    variant, function = build.variants(90)[name], getattr(source, name)

    def run(device: FakeDevice, grid: tuple[int, ...], block: tuple[int, ...], *args: np.number[Any]) -> None:
        assert block == (record["threads"], 1, 1) and len(args) == len(record["arguments"])
        own = [
            torch.from_numpy(_from(device, int(value), TYPES[kind])) if kind.startswith("*") else value.item()
            for kind, value in zip(variant.signature.values(), args, strict=False)
        ]
        with np.errstate(all="ignore"), without_waste():
            function[grid](*own, **variant.constants)

    return run


def _from(device: FakeDevice, ptr: int, dtype: Any) -> NDArray[Any]:
    """All of a buffer from an address on."""
    assert ptr % 16 == 0
    for buffer in device._buffers.values():
        if buffer.ptr <= ptr < buffer.ptr + buffer.nbytes:
            rest = buffer.bytes[ptr - buffer.ptr :]
            return rest[: len(rest) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)
    raise AssertionError(f"address {ptr:#x} is in no live buffer")
