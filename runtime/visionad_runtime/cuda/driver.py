"""pycuda and the driver library: loading them, their errors in words, kernel arguments."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import VisionADError

if TYPE_CHECKING:
    pass


class Context(Protocol):
    """What an error message asks of the device that failed."""

    lost: bool
    _cuda: Any

    @property
    def total_memory(self) -> int: ...

    def free_memory(self) -> int: ...


def _pycuda() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a symbol that it does not find it warns, and raises as well
            try:
                import pycuda.driver as cuda
            except ImportError as exc:
                if "libcurand" not in str(exc) or not _load_curand():
                    raise
                import pycuda.driver as cuda
    except ModuleNotFoundError:
        either = "; no NVIDIA driver is here either: install that first, or use --backend onnxruntime-cpu"
        raise VisionADError(
            "the GPU is reached by pycuda, which is missing: pip install pycuda (it compiles against the CUDA toolkit)"
            + (either if _no_driver() else "")
        ) from None
    except ImportError as exc:
        none = str(exc) if "cuda.so" in str(exc) or "nvcuda" in str(exc) else _no_driver()
        if none:
            raise VisionADError(
                f"no NVIDIA driver here ({none}); install the driver (then `nvidia-smi` works) or use --backend onnxruntime-cpu"
            ) from None
        raise VisionADError(  # pip keeps the wheel that it compiled, and would only put the same one back
            f"pycuda does not load: {exc}; compile it again where CUDA is, of a version that the driver serves "
            "(pip install --force-reinstall --no-deps --no-cache-dir pycuda)"
        ) from None
    try:
        cuda.init()
    except (cuda.Error, UnicodeDecodeError) as exc:
        raise VisionADError(
            f"the NVIDIA driver finds no GPU it can use ({exc}); see whether `nvidia-smi` works, or use --backend onnxruntime-cpu"
        ) from None
    return cuda


def _abandon(thing: Any) -> None:
    """Never free it, not at the end of the process either: pycuda prints two lines for each thing that cannot be freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _load_curand() -> bool:
    """pycuda is linked to it; where CUDA came by pip, it lies where no loader looks."""
    for place in sys.path:
        for path in Path(place).glob("nvidia/*/lib/libcurand.so.*"):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return True
    return False


@contextmanager
def _translated(cuda: Any, doing: str, device: Context | None = None) -> Iterator[None]:
    """The driver's errors as one line each."""
    try:
        yield
    except cuda.Error as exc:
        raise _error(cuda, doing, exc, device) from None


def _error(cuda: Any, doing: str, exc: Exception, device: Context | None) -> VisionADError:
    if isinstance(exc, cuda.MemoryError):
        free = (
            f"; {device.free_memory() / 2**20:.0f} of {device.total_memory / 2**20:.0f} MiB are free" if device else ""
        )
        return VisionADError(
            f"out of GPU memory {doing}{free}; close other programs on this GPU, or use a smaller model or lower precision"
        )
    return VisionADError(f"the GPU failed {doing}: {str(exc).rstrip(' -')}; {_way_out(device)}")


def _way_out(device: Context | None) -> str:
    """What mends a failed call, after a look at whether the driver still serves this process."""
    if device is not None:
        try:
            device._cuda.mem_get_info()  # refused only when all is
        except device._cuda.Error:
            device.lost = True
            return (
                "this process cannot use the GPU any more: start it again, and if it fails again, run `visionad doctor`"
            )
    return "run `visionad doctor`"


@functools.cache
def _libcuda() -> Any:
    # PyDLL keeps Python's lock during a call: they are short, and to get it back may take another thread's whole turn.
    return ctypes.PyDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _no_driver() -> str:
    """Why the driver's library does not load; empty where it does."""
    try:
        _libcuda()
    except OSError as exc:
        return str(exc)
    return ""


def _call(status: int, doing: str, device: Context) -> None:
    if status:
        text = ctypes.c_char_p()
        with contextlib.suppress(AttributeError):
            _libcuda().cuGetErrorString(status, ctypes.byref(text))
        what = (text.value or b"").decode() or "CUDA error"
        raise VisionADError(f"the GPU failed {doing}: {what} ({status}); {_way_out(device)}")
