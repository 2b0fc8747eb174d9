"""What a folder knows of the store that it was pulled from or pushed to: ``BANK/remote.json``, ``MODEL/remote.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from ...errors import BankError
from ...formats.files import atomic_write
from ...formats.manifest import BankManifest, to_json
from ...formats.strict import Strict
from .revisions import Target, place_of

REMOTE = "remote.json"


class Seen(Strict):
    """The revision of a store that a folder holds.

    Attributes:
        revision: its number.
        envelope: its sha256.
        highest: largest number that was seen. Older revisions are taken only if they are named.
    """

    revision: int
    envelope: str
    highest: int


class Origin(Seen):
    """The revision that a bank is based on.

    Attributes:
        base: its manifest, which a merge compares both sides with.
    """

    base: BankManifest


class Origins(Strict):
    """All stores of a bank: place without revision → origin."""

    format: str = "visionad-remote"
    origins: dict[str, Origin] = Field(default_factory=dict)


class SeenModels(Strict):
    """All stores of a model folder: place without revision → revision."""

    format: str = "visionad-model-remote"
    origins: dict[str, Seen] = Field(default_factory=dict)


S = TypeVar("S", bound=Seen)


def read_origins(bank: Path) -> Origins:
    """Return the stores that a bank knows.

    Raises:
        BankError: The file is damaged.
    """
    path = bank / REMOTE
    try:
        return Origins.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Origins()
    except (OSError, ValueError, ValidationError):
        raise BankError(f"{path} is damaged; delete it, then the next pull merges without a common base") from None


def read_origin(bank: Path, target: Target) -> Origin | None:
    """Return the revision of a store that a bank is based on. Errors are those of :func:`read_origins`."""
    return _find(read_origins(bank).origins, target)


def write_origin(bank: Path, target: Target, origin: Origin) -> None:
    """Note the revision that a bank is based on. The caller holds the bank's lock."""
    known = _others(read_origins(bank).origins, target)
    atomic_write(bank / REMOTE, to_json(Origins(origins={**known, target.place: origin})))


def read_seen(model: Path) -> SeenModels:
    """Return the revisions that a model folder knows; none if the file is damaged."""
    try:
        return SeenModels.model_validate_json((model / REMOTE).read_bytes())
    except (OSError, ValueError, ValidationError):
        return SeenModels()


def find_seen(known: SeenModels, target: Target) -> Seen | None:
    """Return the revision of a store that a model folder knows."""
    return _find(known.origins, target)


def write_seen(folder: Path, known: SeenModels, target: Target, seen: Seen) -> None:
    """Note the revision of a model folder."""
    atomic_write(folder / REMOTE, to_json(SeenModels(origins={**_others(known.origins, target), target.place: seen})))


def _find(origins: Mapping[str, S], target: Target) -> S | None:
    """Return the origin of a store. Earlier releases named it as it was typed, so it may stand there several times."""
    found = [(url == target.place, one.highest, url) for url, one in origins.items() if place_of(url) == target.place]
    if not found:
        return None
    one = origins[max(found)[2]]
    return one.model_copy(update={"highest": max(highest for _, highest, _ in found)})


def _others(origins: Mapping[str, S], target: Target) -> dict[str, S]:
    return {url: one for url, one in origins.items() if place_of(url) != target.place}
