"""What a monitoring system asks a station for: the metrics of ``visionad serve``, by their names, and the state of the line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from ..._release import __version__
from ..image_metrics import ImageMetrics, InfoCollector, Inspecting

NO_PROCESS = "none"


class StationMetrics(ImageMetrics):
    """Counts of the images of the line's parts since the page process began, and the state at the time of a question."""

    def add(self, images: Iterable[Mapping[str, Any]]) -> None:
        """Count the images of a part.

        Args:
            images: of the event ``inspected``, one for each camera that gave a result.
        """
        for one in images:
            self.count(
                one["class"], one["verdict"], one["timings_ms"], one["score"], one["threshold"], one["promise_void"]
            )

    def text(self, found: Mapping[str, Any], counts: Mapping[str, Any], pages: int) -> bytes:
        """Return all metrics as Prometheus reads them.

        Args:
            found: health of the station, with the ``facts`` of the worker.
            counts: parts of this shift.
            pages: number of browsers that are connected.
        """
        registry = CollectorRegistry()
        facts = found["facts"]
        registry.register(
            InfoCollector(
                lambda: Inspecting(
                    __version__, facts.get("backend", ""), facts.get("precision", ""), facts.get("model_digest", ""),
                    facts.get("bank_digest", ""),
                )
            )
        )  # fmt: skip
        ProcessCollector(pid=lambda: facts.get("pid") or NO_PROCESS, registry=registry)  # of the process that inspects
        values = {
            "visionad_ready": ("whether a trigger is accepted", found["ready"]),
            "visionad_bank_version": ("version of the bank in force", facts.get("bank_version") or 0),
            "visionad_missed": ("triggers that were not accepted, since start", found["missed"]),
            "visionad_late": ("results after their deadline, since start", found["late"]),
            "visionad_overrun": ("results that were not acknowledged in time, since start", found["overrun"]),
            "visionad_alarms": ("alarms that stand", len(found["alarms"])),
            "visionad_unwritten": ("results that wait for the disk", found["unwritten"]),
            "visionad_pages": ("browsers that are connected", pages),
        }
        for name, (text, value) in values.items():
            Gauge(name, text, registry=registry).set(float(value))
        shift = Gauge("visionad_shift_parts", "parts of this shift", ["evaluation"], registry=registry)
        for name in ("ok", "reject", "undecided"):
            shift.labels(name).set(counts.get(name, 0))
        return generate_latest(self.registry) + generate_latest(registry)
