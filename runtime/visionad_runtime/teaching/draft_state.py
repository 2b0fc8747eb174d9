"""What a draft is on disk: its state beside a bank of one class. See ``teaching/draft.py``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from ..bank.adopt import begin_bank, entry_digest
from ..bank.names import check_class_name, folder_name
from ..errors import VisionADError
from ..formats.files import atomic_write
from ..formats.strict import Strict

STATE, BANK, COLLECTED = "draft.json", "bank", "collected"


class Decision(Strict):
    """A person's word about a part that stands out from the others.

    Attributes:
        reason: why it is good all the same.
        who: the person.
    """

    reason: str
    who: str


class CollectedPart(Strict):
    """A part of the line that was scored with the draft.

    Attributes:
        part: its number in the records.
        name: its text.
        camera: that took the image.
        pixels: digest of the image; it names the file, too.
        score: with the draft.
        looked: whether a person has looked at it.
        struck: why it does not count; empty if it does.
        who: who struck it out.
    """

    part: int
    name: str
    camera: str
    pixels: str
    score: float
    looked: bool = False
    struck: str = ""
    who: str = ""


class DraftState(Strict):
    """What a draft holds beside its bank.

    Attributes:
        class_name: the class.
        version: counts the changes of the draft.
        who: made the last change.
        base_version: version of the bank that the draft was begun from.
        base: digest of the class's entry there; empty for a new class.
        decisions: sha256 of a support → what was decided of it.
        collecting: whether parts of the line are collected.
        collected: those parts.
        without_image: parts of the line that had no image to collect.
        why_ended: why collecting ended by itself.
    """

    class_name: str
    version: int
    who: str
    base_version: int
    base: str
    decisions: dict[str, Decision] = Field(default_factory=dict)
    collecting: bool = False
    collected: tuple[CollectedPart, ...] = ()
    without_image: int = 0
    why_ended: str = ""


class DraftChangedError(VisionADError):
    """Somebody else has changed the draft. ``who`` did, and ``version`` is its version now."""

    def __init__(self, who: str, version: int) -> None:
        super().__init__(f"the draft was changed by {who} meanwhile (version {version}); look at it, and try again")
        self.who, self.version = who, version


class NotReadyError(VisionADError):
    """The draft cannot go live. ``code`` says why: ``no_parts``, ``no_threshold``, ``undecided``, ``not_looked``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def drafts_in(folder: Path) -> Iterator[DraftState]:
    """Yield the drafts of a folder, in the order of their names. A damaged one is passed over: it can be begun anew."""
    for path in sorted(folder.glob(f"*/{STATE}")):
        try:
            state = DraftState.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if path.parent.name == folder_name(state.class_name):  # another one was put aside
            yield state


def draft_folder(folder: Path, name: str) -> Path:
    """Return the folder of a class's draft: one plain name directly below the folder of all drafts."""
    return folder / folder_name(name)


def remove_draft(folder: Path) -> None:
    """Delete the folder of a draft, if it is there.

    Args:
        folder: as :func:`draft_folder` returns it.

    Raises:
        VisionADError: It is not one plain name below another folder, holds drafts itself, or cannot be deleted.
    """
    if folder.name in ("", ".", "..") or folder.is_symlink() or any(folder.glob(f"*/{STATE}")):
        raise VisionADError(f"{folder}: expected the folder of a draft; nothing was deleted")
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as exc:
        raise VisionADError(f"{folder} cannot be deleted: {exc.strerror}") from None


def begin_draft(folder: Path, live: Path, name: str, who: str) -> DraftState:
    """Begin a draft of a class: as the line's bank holds it, or empty for a new one.

    Args:
        folder: of the draft.
        live: bank folder of the line.
        name: the class.
        who: the person.

    Raises:
        BankError: The name is invalid, or the bank cannot be read.
    """
    name = check_class_name(name)
    remove_draft(folder)  # what a kill has left: without its state it is no draft
    manifest = begin_bank(live, folder / BANK, name)
    state = DraftState(
        class_name=name,
        version=1,
        who=who,
        base_version=manifest.version,
        base=entry_digest(manifest.classes.get(name)),
    )
    write_state(folder, state)
    return state


def read_state(folder: Path) -> DraftState:
    """Read the state of a draft.

    Raises:
        VisionADError: There is none, or it is damaged.
    """
    try:
        return DraftState.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):
        raise VisionADError(f"{folder / STATE} is missing or damaged; begin the draft anew") from None


def write_state(folder: Path, state: DraftState) -> None:
    """Write the state of a draft."""
    atomic_write(folder / STATE, state.model_dump_json(indent=1).encode())
