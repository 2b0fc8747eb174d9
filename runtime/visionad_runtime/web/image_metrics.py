"""Metrics that a service and a station have alike, in Prometheus's names. The shipped rules and the dashboard read these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
RATIOS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class ImageMetrics:
    """Counts of inspected images and of requests.

    Attributes:
        registry: all of them.
    """

    def __init__(self) -> None:
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
        self.void = Gauge(
            "visionad_promise_void",
            "1: good parts are not like the calibration's, so its promise is void",
            ["class_name"],
            registry=self.registry,
        )

    def count(
        self,
        class_name: str | None,
        verdict: str,
        timings: Mapping[str, float],
        score: float,
        threshold: float | None,
        void: bool | None,
    ) -> None:
        """Count an image.

        Args:
            class_name: of the result, as the others.
            verdict: of the result.
            timings: milliseconds by stage, and their ``total``.
            score: of the result.
            threshold: of the class.
            void: whether the promise of the class is void; ``None`` without a promise.
        """
        name = class_name or ""
        self.images.labels(name, verdict).inc()
        for stage, ms in timings.items():
            if stage == "total":
                self.seconds.observe(ms / 1e3)
            else:
                self.stages.labels(stage).observe(ms / 1e3)
        if void is not None:
            self.void.labels(name).set(void)
        if threshold:
            self.ratio.labels(name).observe(score / threshold)


class Inspecting(NamedTuple):
    """What inspects: the labels of ``visionad_info``.

    Attributes:
        version: of this package.
        backend: name of the engine.
        precision: that it computes in.
        model: sha256 of the model's content.
        bank: sha256 of the content of the bank in force.
    """

    version: str
    backend: str
    precision: str
    model: str
    bank: str


class InfoCollector(Collector):
    """What inspects, with the digests of model and bank in force: ``count by (bank) (visionad_info)`` is a fleet's overview.

    Args:
        describe: returns it.
    """

    def __init__(self, describe: Callable[[], Inspecting]) -> None:
        self._describe = describe

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the one series: a digest that is no longer in force leaves none behind."""
        info = GaugeMetricFamily("visionad_info", "what inspects", labels=Inspecting._fields)
        info.add_metric(self._describe(), 1)
        yield info
