"""What a monitoring system asks for, in Prometheus's names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .._release import __version__
from ..inspector import Inspector
from ..result import Result
from ..station.judging.promise_watch import PromiseWatch

LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
RATIOS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class Metrics:
    """What a monitoring system asks for, in Prometheus's names."""

    def __init__(self, inspector: Inspector, promises: PromiseWatch) -> None:
        self.registry = CollectorRegistry()
        self.images = Counter(
            "visionad_pictures", "images inspected", ["class_name", "verdict"], registry=self.registry
        )
        self.refused = Counter("visionad_refused", "requests without a result", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "visionad_inspection_seconds",
            "decoded image to result, waiting left out",
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.stages = Summary("visionad_stage_seconds", "the same by stage", ["stage"], registry=self.registry)
        self.ratio = Histogram(
            "visionad_score_ratio",
            "score by threshold: drifts with light and lens before verdicts do",
            ["class_name"],
            buckets=RATIOS,
            registry=self.registry,
        )
        self.waiting = Gauge("visionad_waiting", "images that wait or are inspected", registry=self.registry)
        self.receiving = Gauge("visionad_receiving", "images that are being sent", registry=self.registry)
        version = Gauge("visionad_bank_version", "version of the bank in force", registry=self.registry)
        version.set_function(lambda: inspector.bank.manifest.version if inspector.bank is not None else 0)
        self._promises = promises
        self.void = Gauge(
            "visionad_promise_void",
            "1: good parts are not like the calibration's, so its promise is void",
            ["class_name"],
            registry=self.registry,
        )
        self.evidence = Gauge(
            "visionad_exchangeability",
            "evidence against good parts like the calibration's: 100 is an alarm",
            ["class_name"],
            registry=self.registry,
        )
        self.registry.register(_Info(inspector))
        ProcessCollector(registry=self.registry)

    def add(self, result: Result) -> None:
        """Count a result."""
        name = result.class_name or ""
        self.images.labels(name, result.verdict).inc()
        for stage, ms in result.timings.items():
            if stage == "total":
                self.seconds.observe(ms / 1e3)
            else:
                self.stages.labels(stage).observe(ms / 1e3)
        if result.promise is not None:
            self.void.labels(name).set(result.promise.void)
            self.evidence.labels(name).set(self._promises.evidence().get(name, 1.0))
        if result.threshold:
            self.ratio.labels(name).observe(result.score / result.threshold)


class _Info(Collector):
    """What inspects, with the digests of model and bank in force: ``count by (bank) (visionad_info)`` is a fleet's overview."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the one series: a digest that is no longer in force leaves none behind."""
        bank, engine = self._inspector.bank, self._inspector.engine
        info = GaugeMetricFamily(
            "visionad_info", "what inspects", labels=["version", "backend", "precision", "model", "bank"]
        )
        digest = "" if bank is None else bank.snapshot.digest
        info.add_metric([__version__, engine.name, engine.precision, self._inspector.digest, digest], 1)
        yield info
