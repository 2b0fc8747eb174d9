"""Leaves: cameras and sinks, found by their ``kind`` in the station file."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from ..errors import VisionADError


class LeafSettings(BaseModel):
    """Settings of a leaf. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str


T = TypeVar("T")


class LeafRegistry(Generic[T]):
    """Classes of leaves by kind. A class is imported when a station file names its kind.

    Args:
        what: ``camera`` or ``sink``, for messages.
        group: entry point group of third-party leaves.
        builtin: kind → ``module:Class``.
    """

    def __init__(self, what: str, group: str, builtin: Mapping[str, str]) -> None:
        self.what, self.group, self._builtin = what, group, dict(builtin)

    def kinds(self) -> tuple[str, ...]:
        """Return all kinds, sorted."""
        return tuple(sorted({*self._builtin, *(point.name for point in entry_points(group=self.group))}))

    def load(self, kind: str) -> type[T]:
        """Return the class of a kind.

        Raises:
            VisionADError: There is no such kind, or the package that has it cannot be imported.
        """
        target = self._builtin.get(kind)
        if target is None:
            found = [point for point in entry_points(group=self.group) if point.name == kind]
            if not found:
                close = difflib.get_close_matches(kind, self.kinds(), 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise VisionADError(
                    f"unknown {self.what} kind {kind!r}: expected one of {', '.join(self.kinds())}{hint}"
                )
            target = found[0].value
        module, _, name = target.partition(":")
        try:
            leaf: type[T] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as exc:
            raise VisionADError(
                f"{self.what} kind {kind!r}: {target} cannot be imported: {exc}; reinstall the package that has it"
            ) from None
        return leaf
