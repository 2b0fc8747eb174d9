"""An opened model with its bank: what an inspection holds, and how it follows the bank."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._threads import Lifetime, available_cpus
from ..bank.memory_bank import Snapshot
from ..bank.names import normalize_class_name, unknown_class_message
from ..bank.routing import THRESHOLDS, Router
from ..bank.store import Bank
from ..engine.base import Engine, Tokens
from ..errors import BankError, VisionADError
from ..formats.manifest import ClassEntry, ModelManifest, ViewName
from ..images import pixels
from ..pipeline.assembly import open_pipeline
from ..pipeline.base import Pipeline
from ..preprocess import prepare, query_views
from ..scoring.spec import ScoringSpec

log = logging.getLogger("visionad")

F32 = NDArray[np.float32]


class OpenedModel:
    """A model, a bank and an engine. Any thread may call it.

    Attributes:
        manifest: manifest of the model.
        digest: sha256 of the model's content.
        engine: backbone that encodes images.
        bank: bank of enrolled classes, or ``None``.
        scoring: views and scoring settings.
        pipeline: preprocessing to score.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        engine: Engine,
        bank: Bank | None,
        scoring: ScoringSpec,
        golden: Mapping[str, NDArray[Any]],
        threads: int | None = None,
        keep_alive: float | None = None,
    ) -> None:
        self.manifest = manifest
        self.digest = manifest.content_digest()
        self._golden = golden
        self._out_of_distribution_token: F32 = golden["class_token"]
        self.engine = engine
        self._owns_engine = True
        self.bank = bank
        self.scoring = scoring
        self.pipeline: Pipeline = open_pipeline(engine, manifest, scoring, golden, threads, keep_alive)
        self._threads = threads or available_cpus()
        self._loaded: Snapshot | None = None
        self._router: tuple[Snapshot, Router] | None = None
        self._last_revision: tuple[int, ...] | None = None
        self._loading = threading.Lock()
        self._lifetime = Lifetime("this inspector was closed; open another with Inspector.open")

    @property
    def views(self) -> tuple[ViewName, ...]:
        """Views that images are inspected in."""
        return self.scoring.views

    def close(self) -> None:
        """Release the memory of engine and pipeline.

        It waits for calls in other threads. Later calls raise :class:`VisionADError`. A second ``close`` does nothing.
        """
        with self._lifetime.end() as first:
            if first:
                try:
                    self.pipeline.close()
                finally:
                    if self._owns_engine:
                        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_free_class_token(self) -> bool:
        """Whether the class token costs no further layers of the backbone, so that a mix-up is looked for."""
        return self.manifest.identity.class_token == "fused"

    def _class_token(self, rgb: pixels.RGB8) -> F32:
        """Return the class token of a whole image in the first view, float32 (Dc,)."""
        prepared = prepare(rgb, self.manifest.identity.preprocess, self._threads)
        tokens = self.engine.encode(query_views(prepared, self.views[:1]))
        assert tokens.cls is not None
        token: F32 = tokens.cls[0]
        return token

    def _router_of(self, bank: Snapshot) -> Router:
        """Return the router of a bank version. Threads that race make one each, which is harmless."""
        cached = self._router
        if cached is None or cached[0] is not bank:
            thresholds = THRESHOLDS[self.manifest.identity.class_token]
            router = Router(bank.classes, self._out_of_distribution_token, thresholds, self.views[0])
            cached = self._router = bank, router
        return cached[1]

    def _load_bank(self) -> None:
        """Load the current version of the bank into the pipeline. If another thread does so already, do not wait for it."""
        assert self.bank is not None
        if self._loaded is not self.bank.snapshot and self._loading.acquire(blocking=False):
            try:
                current = self.bank.snapshot
                self.pipeline.load_banks([rows for cls in current.classes.values() for rows in cls.rois])
                self._loaded = current
            finally:
                self._loading.release()

    def refresh(self) -> bool:
        """Load the version that another process has committed to the bank folder. Return whether there was one.

        Without a change this costs one ``stat`` call. If the bank became unreadable, a warning is logged once and the version in
        memory stays in use.
        """
        if self.bank is None or (revision := self.bank.revision()) == self._last_revision:
            return False
        self._last_revision = revision  # taken before reading, so that a commit during the read is noticed next time
        try:
            if revision is not None:
                return self.bank.refresh()
            problem = "it has no manifest any more"
        except VisionADError as exc:
            problem = str(exc)
        log.warning(
            "bank %s: %s; going on with version %d in memory", self.bank.folder, problem, self.bank.manifest.version
        )
        return False

    @property
    def threads(self) -> int:
        """Maximum number of CPU threads."""
        return self._threads

    def holds(self, entry: ClassEntry) -> bool:
        """Return whether a class's thresholds, if it has any, were calibrated with this scoring and precision."""
        record = entry.calibration
        return record is None or self.scoring.holds_for(record, self.engine.precision)

    def calibration_warnings(self) -> list[str]:
        """Return one line for each class whose threshold is not used here, with the reason."""
        current = f"{self.scoring.describe()} in {self.engine.precision}"
        return [
            f"class {name}: its threshold was calibrated with {ScoringSpec.of(record).describe()} in {record.precision}, which "
            f"does not hold for {current}; its verdicts are unknown until `visionad calibrate`"
            for name, cls in (self.bank.classes if self.bank is not None else {}).items()
            if (record := cls.entry.calibration) is not None and not self.holds(cls.entry)
        ]

    def require_class(self, class_name: str | None) -> Bank:
        """Return the bank, after checking that it holds this class, or any class for ``None``.

        Raises:
            BankError: Nothing is enrolled, or the class is unknown.
        """
        self._snapshot(class_name)
        assert self.bank is not None
        return self.bank

    def _snapshot(self, class_name: str | None) -> Snapshot:
        """Return the current version, checked as in :meth:`require_class`. Another thread may change the bank at any time."""
        if self.bank is None or not (bank := self.bank.snapshot).classes:
            where = self.bank.folder if self.bank else "(none opened)"
            raise BankError(f"bank {where} holds no class yet; enroll good images with `visionad bank add`")
        if class_name is not None and normalize_class_name(class_name) not in bank.classes:
            raise BankError(unknown_class_message(self.bank.folder, class_name, bank.classes))
        return bank

    def _require_bank(self) -> Bank:
        if self.bank is None:
            raise BankError("no bank was opened; give Inspector.open a bank folder")
        return self.bank

    def encode(self, images: F32) -> Tokens:
        """Return the tokens of normalized images, float32 (N, 3, crop, crop)."""
        with self._lifetime.in_use():
            return self.engine.encode(images)
