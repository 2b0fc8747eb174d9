"""Search indexes of the banks in use: which were requested, are being built or are ready."""

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
    """Build and keep an index for each bank and view that is searched more than once.

    Who searches owns one. Banks are referenced weakly, so an index goes with its bank. Safe for use by several threads.
    """

    def __init__(self) -> None:
        self._entries = weakref.WeakKeyDictionary[object, dict[str, _Entry]]()
        self._lock = threading.Lock()

    def index_for(self, bank: object, view: str, rows: F32, queries: F32) -> F32 | pruning.PrunedIndex:
        """Return the fastest index for a view of a bank; its results equal a search over ``rows``.

        The index is built in the background after the second call, on one CPU beside all inspections: a bank that is searched once
        (leave-one-out) does not pay for one. Until it is ready the plain rows are returned. They also stay where an index is not
        worth it, or cannot be built for lack of memory or because of NaN or Inf, which the search itself then reports.

        Args:
            bank: identifies the rows; immutable, hashed by identity.
            view: of the bank.
            rows: float32 (N, D), unit rows of that view.
            queries: float32 (Q, D), unit rows such as will be searched for. They decide the index's size, never a result.
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
