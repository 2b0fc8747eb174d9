"""Search indexes of the banks in use, which are built in the background."""

from __future__ import annotations

import contextlib
import enum
import functools
import threading
import weakref
from dataclasses import dataclass

from .._threads import submit_background
from ..errors import VisionADError
from . import pruning
from .numpy_search import F32


class IndexState(enum.Enum):
    """State of the index of one view of a bank."""

    NOT_REQUESTED = "not requested"
    REQUESTED = "requested once"
    BUILDING = "building"
    READY = "ready"


@dataclass(eq=False)
class _Entry:
    state: IndexState = IndexState.NOT_REQUESTED
    index: F32 | pruning.PrunedIndex | None = None


class SearchIndex:
    """Build and cache an index for each bank and view that is searched more than once.

    Each searcher owns one. Banks are referenced weakly, so an index is freed with its bank. It is thread-safe.
    """

    def __init__(self) -> None:
        """Start without indexes."""
        self._entries = weakref.WeakKeyDictionary[object, dict[str, _Entry]]()
        self._lock = threading.Lock()

    def index_for(self, bank: object, view: str, rows: F32, queries: F32) -> F32 | pruning.PrunedIndex:
        """Return the fastest index for a view of a bank; its results equal a search over ``rows``.

        The index is built in the background after the second call, on one CPU, while inspections continue. So a bank that is
        searched once (leave-one-out) never gets one. Until the index is ready, the plain rows are returned. They are also returned
        if an index is not worth it, memory is short, or there are NaN or Inf, which the search then reports.

        Args:
            bank: identifies the rows. It must be immutable and hashed by identity.
            view: name of the view.
            rows: float32 (N, D), unit rows of that view.
            queries: float32 (Q, D), unit rows, typical queries. They decide the index's size, never a result.
        """
        if len(rows) < pruning.MIN_ROWS:
            return rows
        with self._lock:
            entry = self._entries.setdefault(bank, {}).setdefault(view, _Entry())
            if entry.state is IndexState.READY:
                return rows if entry.index is None else entry.index
            build = entry.state is IndexState.REQUESTED
            if build:
                entry.state = IndexState.BUILDING
            elif entry.state is IndexState.NOT_REQUESTED:
                entry.state = IndexState.REQUESTED
        if build:
            submit_background(functools.partial(self._build, entry, rows, queries))
        return rows

    def state(self, bank: object, view: str) -> IndexState:
        """Return the state of a view's index."""
        with self._lock:
            entry = self._entries.get(bank, {}).get(view)
            return IndexState.NOT_REQUESTED if entry is None else entry.state

    def _build(self, entry: _Entry, rows: F32, queries: F32) -> None:
        index: F32 | pruning.PrunedIndex | None = None
        with contextlib.suppress(VisionADError, MemoryError):
            index = pruning.build_index(rows, queries, threads=1)
        with self._lock:
            entry.index, entry.state = index, IndexState.READY
