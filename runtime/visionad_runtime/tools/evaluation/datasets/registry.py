"""Registry of data set layouts. Layouts register themselves.

Layouts are found in two places: the modules of this package, and the entry points of the group ``visionad.datasets`` of installed
distributions. An entry point names a module whose import registers one or more layouts.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

from .base import ClassData, Dataset, DatasetError, Faults

GROUP = "visionad.datasets"
Layout = Callable[[Path, Faults], dict[str, ClassData]]
"""Reads a data set's folder and returns images by class. It records faults in the second argument if the rest stays readable."""

log = logging.getLogger("visionad")
_layouts: dict[str, Layout] = {}
_metrics: dict[str, tuple[str, ...]] = {}
_broken: set[str] = set()


def register(name: str, metrics: tuple[str, ...] = ()) -> Callable[[Layout], Layout]:
    """Return a decorator that registers a layout.

    Args:
        name: name for ``visionad eval --dataset``.
        metrics: names of the data set's own metrics, keys of :data:`~visionad_runtime.tools.evaluation.own_metrics.OWN`.

    Raises:
        ValueError: another function is registered under the name.
    """

    def add(layout: Layout) -> Layout:
        known = _layouts.setdefault(name, layout)
        if known is not layout and (known.__module__, known.__qualname__) != (layout.__module__, layout.__qualname__):
            raise ValueError(
                f"data set layout {name!r} is registered twice: by {known.__module__} and {layout.__module__}"
            )
        _metrics[name] = metrics
        return layout

    return add


def layouts() -> Mapping[str, Layout]:
    """Return all layouts by name, sorted. A module of another distribution that fails to import is logged and left out."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as exc:  # foreign code raises any type; the other data sets must stay usable
            if entry.value not in _broken:
                _broken.add(entry.value)
                log.warning("data set %s (%s) cannot be used: %s: %s", entry.name, entry.value, type(exc).__name__, exc)
    return dict(sorted(_layouts.items()))


def open_dataset(name: str, root: Path) -> Dataset:
    """Find and check all images of a data set without decoding them.

    Args:
        name: name of a layout.
        root: folder of the data set.

    Raises:
        DatasetError: the name or the folder does not exist, the layout differs, or files are missing.
    """
    known = layouts()
    if name not in known:
        raise DatasetError(f"unknown data set {name!r}; expected one of {', '.join(known)}")
    if not root.is_dir():
        raise DatasetError(f"{name}: expected a folder at {root}")
    faults = Faults(name, root)
    by_class = known[name](root, faults)
    for class_name, data in by_class.items():
        for part, images in (("train", data.train), ("test", data.test)):
            if not images:
                faults.add(f"class without {part} images", class_name)
    faults.raise_if_any()
    return Dataset(name, root, dict(sorted(by_class.items())), _metrics.get(name, ()))
