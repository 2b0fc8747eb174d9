"""The table of backends. They are discovered in this package and in entry points.

A backend is one module (or package) beside this one that defines ``SPEC`` or ``SPECS``. Other distributions add theirs by an entry
point of the group ``visionad.backends`` that names a :class:`~visionad_runtime.engine.base.BackendSpec`.

A backend that is requested by name and cannot run is an error. ``auto`` takes the first backend that runs here and passes the
check. It reports why in ``engine.info`` and the log ``visionad``. ``auto`` never triggers an engine build: run ``visionad build``
once; afterwards a stale engine is rebuilt when it is opened.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VisionADError
from ..system import has_nvidia_driver
from .base import CPU, BackendSpec, Engine, Probe

if TYPE_CHECKING:
    from ..formats.manifest import ModelManifest, Precision

log = logging.getLogger("visionad")

AUTO = "auto"
ENTRY_POINTS = "visionad.backends"


@functools.cache
def backends() -> dict[str, BackendSpec]:
    """Return every backend by name: those of ``auto`` first, in the order in which it tries them.

    The import of a spec loads no inference library. An entry point that does not load is listed as a backend that cannot run.
    """
    specs: dict[str, BackendSpec] = {}
    for spec in (*_built_in(), *_of_entry_points()):
        if specs.setdefault(spec.name, spec) is not spec:
            log.warning("backend %s is defined twice; the second definition is ignored", spec.name)
    order = sorted(specs.values(), key=lambda s: (s.priority is None, -(s.priority or 0), s.name))
    return {spec.name: spec for spec in order}


def auto_backends() -> list[BackendSpec]:
    """Return what ``auto`` tries, best first."""
    return [spec for spec in backends().values() if spec.priority is not None]


def backend_spec(name: str) -> BackendSpec:
    """Return the specification of a backend.

    Raises:
        VisionADError: There is no backend of this name.
    """
    try:
        return backends()[name]
    except KeyError:
        raise VisionADError(f"backend: expected {AUTO} or one of {', '.join(backends())}, got {name!r}") from None


def _built_in() -> Iterator[BackendSpec]:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        leaf = importlib.import_module(f"{package}.{module.name}")
        yield from getattr(leaf, "SPECS", ())
        if isinstance(spec := getattr(leaf, "SPEC", None), BackendSpec):
            yield spec


def _of_entry_points() -> Iterator[BackendSpec]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = entry.load()
            if not isinstance(spec, BackendSpec):
                raise TypeError(f"expected a BackendSpec, got {type(spec).__name__}")
        except Exception as exc:  # foreign code may raise anything
            spec = _broken(entry, exc)
        yield spec


def _broken(entry: importlib.metadata.EntryPoint, exc: Exception) -> BackendSpec:
    owner = entry.dist.name if entry.dist is not None else "an unknown distribution"
    fault = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    why = f"entry point {entry.value} of {owner} does not load ({fault}): update or uninstall {owner}"

    def fail(*_: object, **__: object) -> Engine:
        raise VisionADError(f"{entry.name}: {why}")

    return BackendSpec(name=entry.name, device="unknown", open=fail, probe=lambda: Probe(False, why))


def open_engine(
    folder: Path,
    manifest: ModelManifest,
    backend: str = AUTO,
    *,
    check: Callable[[Engine], None],
    threads: int | None = None,
    batch_size: int | None = None,
    precision: Precision | None = None,
    device: str | None = None,
) -> Engine:
    """Open the model's backbone with a backend and check it on this machine.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        backend: ``auto`` or a name of :func:`backends`.
        check: Called with the opened engine. If it raises, the engine is closed, and ``auto`` tries the next backend.
        threads: CPU threads, for backends on the CPU. Default: all cores.
        batch_size: How many consecutive rows belong together: the views of one image. Default: the number of the model's
            views. On a GPU they are one call of constant size, so a result cannot depend on what else is in a batch.
        precision: The precision to compute in. Default: the model's own.
        device: The device to compute on, for backends that offer several.

    Raises:
        VisionADError: The backend is unknown, cannot run here, or does not take the precision or the device.
        ModelError: The backend fails the check, or no backend runs.
    """
    batch_size = batch_size or len(manifest.views)
    requested = None if precision == manifest.precision else precision

    def attempt(spec: BackendSpec) -> Engine:
        _check_request(spec, manifest, requested, device)
        engine = spec.open(folder, manifest, threads=threads, batch_size=batch_size, precision=requested, device=device)
        try:
            check(engine)
        except BaseException:
            engine.close()  # the next backend may need the memory
            raise
        return engine

    if backend != AUTO:
        engine = attempt(backend_spec(backend))
        engine.info["chosen because"] = "it was requested"
        log.info("backend %s: it was requested", backend)
        return engine
    passed_over: dict[str, str] = {}
    last = VisionADError("no backend runs here")
    for spec in auto_backends():
        try:
            if spec.require_engine is not None:
                spec.require_engine(folder)
            engine = attempt(spec)
        except VisionADError as exc:
            passed_over[spec.name], last = str(exc), exc
            continue
        why = "the best that runs here and passes its self-test"
        engine.info["chosen because"] = why
        if passed_over:
            engine.info["passed over"] = "; ".join(f"{n}: {r}" for n, r in passed_over.items())
        write = log.warning if spec.device == CPU and has_nvidia_driver() else log.info
        write("backend %s: %s%s", spec.name, why, _listed(passed_over))
        return engine
    # The CPU runs everywhere, so its error is about this model and is raised. The others matter only where a GPU is.
    (log.warning if has_nvidia_driver() else log.info)("no backend runs here:%s", _listed(passed_over))
    raise last


def _listed(passed_over: dict[str, str]) -> str:
    return "".join(f"\n  not {name}: {reason}" for name, reason in passed_over.items())


def _check_request(spec: BackendSpec, manifest: ModelManifest, precision: Precision | None, device: str | None) -> None:
    if precision is not None and precision not in spec.precisions:
        offered: Any = ", ".join(dict.fromkeys((manifest.precision, *spec.precisions)))
        raise VisionADError(
            f"{spec.name}: expected precision {offered}, got {precision}; this backend computes in the types of the model's graph: "
            f"export it with `visionad export --precision {precision}`"
            if not spec.precisions
            else f"{spec.name}: expected precision {offered}, got {precision}; choose one of these"
        )
    if device is not None and not spec.takes_device:
        able = [name for name, other in backends().items() if other.takes_device]
        remedy = f"use --backend {' or '.join(able)}" if able else "leave the device out"
        raise VisionADError(f"{spec.name}: expected no device, got {device!r}; {remedy}")
