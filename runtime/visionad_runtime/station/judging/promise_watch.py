"""Follow the promise of each class while parts are inspected: void it when good parts are not like the calibration's any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ...bank.memory_bank import ClassBank
from ...formats.manifest import Calibration
from ...inspector.inspection import Inspection
from ...result import Result
from .exchangeability import ExchangeabilityMonitor

REMEDY = (
    "find what changed (light, lens, material), mend it, and start again; or confirm consecutive parts with "
    "`visionad bank confirm`"
)


class PromiseWatch:
    """One alarm for each class and calibration. Parts must be given in the order in which they were inspected.

    Args:
        inspector: inspector of the parts.
        notify: told once, in words, when an alarm begins.
    """

    def __init__(self, inspector: Inspection, notify: Callable[[str], object] = lambda _: None) -> None:
        self._inspector, self._notify = inspector, notify
        self._monitors: dict[str, tuple[Calibration, ExchangeabilityMonitor]] = {}

    def follow(self, result: Result) -> Result:
        """Return the result, whose promise is void if the alarm of its class stands.

        Args:
            result: result of a part. Only an ok part is evidence: parts that were not accepted may be defective.
        """
        if result.promise is None or result.class_name is None or result.threshold is None:
            return result
        bank = self._inspector.bank
        held = None if bank is None else bank.classes.get(result.class_name)
        if held is None or held.entry.calibration is None:
            return result
        monitor = self._monitor(held, held.entry.calibration)
        before = monitor.alarmed
        if result.verdict == "ok":
            monitor.observe(result.score)
        if not monitor.alarmed:
            return result
        if not before:
            self._notify(
                f"class {result.class_name}: after {monitor.count} accepted parts, today's good parts are not like those of the "
                f"calibration: its promise is void; {REMEDY}"
            )
        return replace(result, promise=replace(result.promise, void=True))

    def evidence(self) -> Mapping[str, float]:
        """Return class → the martingale's value. The alarm begins at 1 / alpha."""
        return {name: monitor.value for name, (_, monitor) in self._monitors.items()}

    def void(self) -> frozenset[str]:
        """Return the classes whose promise is void."""
        return frozenset(name for name, (_, monitor) in self._monitors.items() if monitor.alarmed)

    def _monitor(self, held: ClassBank, record: Calibration) -> ExchangeabilityMonitor:
        cached = self._monitors.get(held.name)
        if cached is None or cached[0] is not record:
            entry = held.entry
            limit = entry.threshold if entry.review_threshold is None else entry.review_threshold
            assert limit is not None
            cached = self._monitors[held.name] = record, ExchangeabilityMonitor(record.scores, limit, name=held.name)
        return cached[1]
