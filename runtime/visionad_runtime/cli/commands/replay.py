"""``visionad replay``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ModelError, VisionADError
from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    DeviceOption,
    JsonFlag,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)
from ..results import json_line, one_line, require_bank

MAX_UNREADABLE = 10
"""Lines that are no record and are named; a wrong file has thousands."""

if TYPE_CHECKING:
    from ...teaching.replay import Replayed


def replay(
    model: ModelArg,
    bank: BankArg,
    records: Annotated[
        Path,
        typer.Argument(metavar="RECORDS", help="journal of `visionad watch`, or lines of `visionad predict --json`"),
    ],
    bank_version: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="show which verdicts this version of the bank would change"),
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option(metavar="BANK2", help="show which verdicts this bank would change")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="look for the images here, by name [default: the recorded paths]")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep the images' tokens here; the next replay encodes nothing")
    ] = None,
    as_json: JsonFlag = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
) -> int:
    """Recompute recorded verdicts, each with the bank version that it names: all bits must be equal.

    Exit status 1 if a line differs or could not be recomputed. With --bank-version or --candidate it shows instead which verdicts
    would change; that is no error.
    """
    from ...inspector import Inspector
    from ...teaching.replay import Difference, Replay, Replayed, Target, read_records

    if bank_version is not None and candidate is not None:
        raise VisionADError("--bank-version and --candidate: each names what to compare with; give one of them")
    for folder, option in ((images, "--images"), (candidate, "--candidate")):
        if folder is not None and not folder.is_dir():
            raise VisionADError(f"{option} {folder}: expected a folder")
    target = None
    if bank_version is not None or candidate is not None:
        target = Target(candidate or bank, bank_version)
    require_bank(bank)
    total = sum(1 for _ in read_records(records))
    if not total:
        raise VisionADError(f"{records} holds no line; give a journal or the lines of --json")
    report = _Report(as_json, target is not None)
    try:
        inspector = Inspector.open(
            model,
            None,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            preset=preset,
            views=views,
        )
    except ModelError as exc:
        if not (model / "manifest.json").exists():
            raise
        problem = str(exc)  # a damaged model is what a replay is to find

        def as_model_difference() -> Iterator[Replayed]:
            for number, facts in read_records(records):
                image = None if facts is None else str(facts["image"])
                skipped: Any = "unreadable" if facts is None else "error" if "error" in facts else None
                difference = None if skipped else Difference("model", (facts or {}).get("model"), problem)
                yield Replayed(number, image, difference, skipped)

        for item in as_model_difference():
            report.add(item)
        return report.finish()
    with (
        inspector,
        closing(
            Replay(
                inspector,
                bank,
                target=target,
                images=images,
                tokens=tokens,
                bit_depth=bit_depth,
                preset=preset,
                views=views,
            )
        ) as replayed,
        progress("replaying", total) as step,
    ):
        for item in replayed.run(records):
            report.add(item)
            step()
    return report.finish()


class _Report:
    """What is said of the lines.

    Args:
        as_json: whether to print JSON.
        what_if: whether verdicts are compared with another bank's.
    """

    def __init__(self, as_json: bool, what_if: bool) -> None:
        self.as_json, self.what_if = as_json, what_if
        self._stages: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._same = 0

    def add(self, item: Replayed) -> None:
        """Count a line, and say how it differs."""
        if item.skipped is not None:
            self._skipped[item.skipped] += 1
            count = self._skipped["unreadable"]
            if item.skipped == "unreadable" and count <= MAX_UNREADABLE:
                more = "; further ones are counted" if count == MAX_UNREADABLE else ""
                complain(f"line {item.line} is no record: expected a line of a journal or of --json{more}")
            return
        difference = item.difference
        if difference is None:
            self._same += 1
        else:
            self._stages[difference.stage] += 1
        if self.as_json:
            facts: dict[str, Any] = {"line": item.line, "image": item.image, "same": difference is None}
            sides = (None, None, None) if difference is None else difference
            say(json_line({**facts, **dict(zip(("stage", "expected", "got"), sides, strict=True))}))
        elif difference is not None:
            image, expected, got = one_line(str(item.image)), _short(difference.expected), _short(difference.got)
            if self.what_if and difference.stage == "verdict":
                say(f"line {item.line}: {image}: {expected} would be {got}")
            else:
                say(f"line {item.line}: {image}: {difference.stage}: expected {expected}, got {got}")

    def finish(self) -> int:
        """Say the summary.

        Returns:
            Exit status.
        """
        differ = sum(self._stages.values())
        replayed = self._same + differ
        flips = self._stages["verdict"] if self.what_if else 0
        if self.as_json:
            facts = {"lines": replayed + sum(self._skipped.values()), "same": self._same, "differ": differ}
            say(
                json_line(
                    {
                        **facts,
                        "errors": self._skipped["error"],
                        "unreadable": self._skipped["unreadable"],
                        "stages": dict(sorted(self._stages.items())),
                    }
                )
            )
        else:
            stages = ", ".join(f"{count} {stage}" for stage, count in sorted(self._stages.items()))
            if self.what_if:
                line = f"{flips} verdicts of {replayed} would flip"
                line += f"; {differ - flips} lines could not be compared ({stages})" if differ > flips else ""
            else:
                line = f"{replayed} lines replayed: {self._same} equal, {differ} differ" + (
                    f" ({stages})" if differ else ""
                )
            notes = [
                f"{self._skipped[kind]} {text}"
                for kind, text in (("error", "lines without a result"), ("unreadable", "lines that are no record"))
                if self._skipped[kind]
            ]
            say("; ".join([line, *notes]))
        return 1 if differ > flips or self._skipped["unreadable"] else 0


def _short(value: Any) -> str:
    """Return a side of a difference in one line."""
    if isinstance(value, dict) and {"verdict", "score"} <= set(value):
        threshold = value.get("threshold")
        limit = "no threshold" if threshold is None else f"{threshold:.4f}"
        return f"{value['verdict']} ({value['score']:.4f} / {limit})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text if len(text) <= 400 else f"{text[:400]}...")
