"""What a monitoring system asks ``visionad serve`` for, in Prometheus's names."""

from __future__ import annotations

from prometheus_client import Gauge, ProcessCollector

from .._release import __version__
from ..inspector import Inspector
from ..result import Result
from ..station.judging.promise_watch import PromiseWatch
from .image_metrics import ImageMetrics, InfoCollector, Inspecting


class Metrics(ImageMetrics):
    """What a monitoring system asks for, in Prometheus's names."""

    def __init__(self, inspector: Inspector, promises: PromiseWatch) -> None:
        super().__init__()
        self._inspector, self._promises = inspector, promises
        version = Gauge("visionad_bank_version", "version of the bank in force", registry=self.registry)
        version.set_function(lambda: inspector.bank.manifest.version if inspector.bank is not None else 0)
        self.evidence = Gauge(
            "visionad_exchangeability",
            "evidence against good parts like the calibration's: 100 is an alarm",
            ["class_name"],
            registry=self.registry,
        )
        self.registry.register(InfoCollector(self._inspecting))
        ProcessCollector(registry=self.registry)

    def add(self, result: Result) -> None:
        """Count a result."""
        void = None if result.promise is None else result.promise.void
        self.count(result.class_name, result.verdict, result.timings, result.score, result.threshold, void)
        if result.promise is not None:
            name = result.class_name or ""
            self.evidence.labels(name).set(self._promises.evidence().get(name, 1.0))

    def _inspecting(self) -> Inspecting:
        bank, engine = self._inspector.bank, self._inspector.engine
        digest = "" if bank is None else bank.snapshot.digest
        return Inspecting(__version__, engine.name, engine.precision, self._inspector.digest, digest)
