"""pycuda and the CUDA driver library: how they are loaded, and their errors as one line each."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import VisionADError


class Context(Protocol):
    """What an error message reads of the device that failed, and the flag that it sets there."""

    context_lost: bool
    _cuda: Any

    @property
    def total_memory(self) -> int: ...

    def free_memory(self) -> int: ...


def load_pycuda() -> Any:
    """Import ``pycuda.driver`` and initialize the driver.

    Raises:
        VisionADError: pycuda, the NVIDIA driver or a GPU is missing, or pycuda does not load.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycuda warns of a missing symbol, and raises as well
            try:
                import pycuda.driver as cuda
            except ImportError as exc:
                if "libcurand" not in str(exc) or not _load_curand():
                    raise
                import pycuda.driver as cuda
    except ModuleNotFoundError:
        driver_hint = "; no NVIDIA driver is here either: install that first, or use --backend onnxruntime-cpu"
        raise VisionADError(
            "the GPU is reached by pycuda, which is missing: pip install pycuda (it compiles against the CUDA toolkit)"
            + (driver_hint if _driver_problem() else "")
        ) from None
    except ImportError as exc:
        problem = str(exc) if "cuda.so" in str(exc) or "nvcuda" in str(exc) else _driver_problem()
        if problem:
            raise VisionADError(
                f"no NVIDIA driver here ({problem}); install the driver (then `nvidia-smi` works) or use --backend onnxruntime-cpu"
            ) from None
        raise VisionADError(  # pip caches the wheel that it compiled, and would install the same one again
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


def leak(resource: Any) -> None:
    """Keep an object alive until the process ends. pycuda prints two lines for each object that it cannot free."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))


def _load_curand() -> bool:
    """Load libcurand, which pycuda links to, from pip's CUDA packages. The system's loader does not search there."""
    for place in sys.path:
        for path in Path(place).glob("nvidia/*/lib/libcurand.so.*"):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return True
    return False


@contextmanager
def translate_errors(cuda: Any, action: str, device: Context | None = None) -> Iterator[None]:
    """Turn errors of pycuda within the block into one-line errors.

    Args:
        cuda: ``pycuda.driver``.
        action: What the block does, as a participle: "making a stream".
        device: The device in use, if there is one.

    Raises:
        VisionADError: The driver refused.
    """
    try:
        yield
    except cuda.Error as exc:
        raise driver_error(cuda, action, exc, device) from None


def driver_error(cuda: Any, action: str, exc: Exception, device: Context | None) -> VisionADError:
    """Return the one-line error for an error of pycuda. Arguments as :func:`translate_errors`."""
    if isinstance(exc, cuda.MemoryError):
        free = (
            f"; {device.free_memory() / 2**20:.0f} of {device.total_memory / 2**20:.0f} MiB are free" if device else ""
        )
        return VisionADError(
            f"out of GPU memory {action}{free}; close other programs on this GPU, or use a smaller model or lower precision"
        )
    return VisionADError(f"the GPU failed {action}: {str(exc).rstrip(' -')}; {_remedy(device)}")


def _remedy(device: Context | None) -> str:
    """Return what fixes a failed call, after a check whether the driver still serves this process."""
    if device is not None:
        try:
            device._cuda.mem_get_info()  # fails only if every call fails
        except device._cuda.Error:
            device.context_lost = True
            return (
                "this process cannot use the GPU any more: start it again, and if it fails again, run `visionad doctor`"
            )
    return "run `visionad doctor`"


@functools.cache
def load_libcuda() -> Any:
    """Load the driver's library.

    Raises:
        OSError: It does not load.
    """
    # PyDLL keeps Python's lock during a call. The calls are short, and getting the lock back may take another thread's whole turn.
    return ctypes.PyDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _driver_problem() -> str:
    """Return why the driver's library does not load; empty if it loads."""
    try:
        load_libcuda()
    except OSError as exc:
        return str(exc)
    return ""


def check_status(status: int, action: str, device: Context) -> None:
    """Check the status of a call to the driver's library.

    Raises:
        VisionADError: It is not 0.
    """
    if status:
        text = ctypes.c_char_p()
        with contextlib.suppress(AttributeError):
            load_libcuda().cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"").decode() or "CUDA error"
        raise VisionADError(f"the GPU failed {action}: {reason} ({status}); {_remedy(device)}")
