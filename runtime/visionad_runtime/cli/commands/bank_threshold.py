"""``visionad bank threshold``: type a threshold by hand, or take it back."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import BankError, VisionADError
from ..console import complain, say
from ..options import BankArg, ClassOption, JsonFlag

if TYPE_CHECKING:
    from ...formats.manifest import ClassEntry


BY_HAND = (
    "the threshold by hand stays in force, and promises nothing; `visionad bank threshold --calibrated` or `visionad calibrate` "
    "replaces it"
)


def promise_line(entry: ClassEntry) -> str:
    """Return what the threshold of a class promises, in words."""
    from ...scoring.conformal import promise_in_words

    if entry.by_hand is not None:
        return BY_HAND
    record = entry.calibration
    return promise_in_words(
        0 if record is None else record.normals, 0.01 if record is None else record.max_false_reject
    )


def tell_if_replaced(class_name: str, before: ClassEntry | None, after: ClassEntry | None) -> None:
    """Say that a change of the class took a threshold by hand away: scores are others now, so it does not hold."""
    by_hand = None if before is None else before.by_hand
    if by_hand is None or after is None or after.by_hand is not None:
        return
    now = "there is none now" if after.threshold is None else f"it is {after.threshold:.4f} now"
    complain(
        f"class {class_name}: the threshold {by_hand.value:g} by hand of {by_hand.who} ({by_hand.reason}) does not hold any more, "
        f"since scores are others; {now}; look at it, and type it again with `visionad bank threshold --set` if need be"
    )


def tell_if_dropped(class_name: str, before: ClassEntry | None, after: ClassEntry) -> None:
    """Say that a change of the class dropped scores of images beside its supports."""
    from ...pipeline.calibration import lost_scores, not_defective

    lost = [] if before is None else lost_scores(before, after)
    if not lost:
        return
    if not not_defective(lost, after):
        why = "they were found defective"
    else:
        why = "they do not hold any more; `visionad calibrate` with good images scores them anew"
    now = "no threshold" if after.threshold is None else f"threshold {after.threshold:.4f}"
    complain(f"class {class_name}: scores of {len(lost)} held-out or confirmed parts were dropped: {why}; {now} now")


def bank_threshold(
    bank: BankArg,
    class_name: ClassOption,
    value: Annotated[
        float | None, typer.Option("--set", metavar="SCORE", help="scores above it are anomalous; it promises nothing")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="why; required with --set, kept in the bank")] = "",
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="return to the thresholds of the recorded scores, and their promise")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Type a threshold by hand, or take it back. `visionad calibrate` replaces it too."""
    from ...bank.memory_bank import ClassBank
    from ...bank.store import Bank
    from ...pipeline.calibration import calibrated_again, type_threshold
    from ...scoring.conformal import promise_in_words

    if (value is None) != calibrated:
        raise VisionADError("expected --set SCORE or --calibrated, one of them")
    typed = 0.0 if value is None else value

    def changed(current: ClassBank) -> ClassEntry:
        try:
            if calibrated:
                return calibrated_again(current.entry)
            return type_threshold(current.entry, typed, getpass.getuser(), reason)
        except BankError as exc:
            raise BankError(f"class {class_name!r} of bank {bank}: {exc}") from None

    opened = Bank.open(bank, lazy=True)
    what = "the calibrated threshold" if calibrated else f"threshold {typed:g} by hand"
    version = opened.update(class_name, f"{class_name}: {what}", changed)
    entry = opened.classes[class_name].entry
    record = entry.calibration
    assert record is not None and entry.threshold is not None
    if as_json:
        by_hand = None if entry.by_hand is None else entry.by_hand.model_dump(mode="json")
        facts = {"class": class_name, "threshold": entry.threshold, "review_threshold": entry.review_threshold}
        say(json.dumps({**facts, "by_hand": by_hand, "bank_version": version}, ensure_ascii=False))
        return
    above = sum(score > entry.threshold for score in record.scores)
    say(
        f"class {class_name}: threshold {entry.threshold:.4f}, bank version {version} (`visionad bank undo` takes it back)"
    )
    say(f"{above} of the {record.normals} recorded good parts lie above it")
    if calibrated:
        say(promise_in_words(record.normals, record.max_false_reject))
    else:
        say("by hand, no guarantee: nothing is promised about good parts, and there is no review limit")
