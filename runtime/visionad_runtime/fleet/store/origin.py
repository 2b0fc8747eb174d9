"""What a bank folder knows of the store that it was pulled from or pushed to: ``BANK/remote.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from ...errors import BankError
from ...formats.files import atomic_write
from ...formats.manifest import BankManifest, to_json
from ...formats.strict import Strict

REMOTE = "remote.json"


class Origin(Strict):
    """The revision that a bank is based on.

    Attributes:
        revision: its number.
        envelope: its sha256.
        highest: largest number that was seen. Older revisions are taken only if they are named.
        base: its manifest, which a merge compares both sides with.
    """

    revision: int
    envelope: str
    highest: int
    base: BankManifest


class Origins(Strict):
    """All stores of a bank: URL without revision → origin."""

    format: str = "visionad-remote"
    origins: dict[str, Origin] = Field(default_factory=dict)


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


def write_origin(bank: Path, url: str, origin: Origin) -> None:
    """Note the revision that a bank is based on. The caller holds the bank's lock."""
    known = read_origins(bank).origins
    atomic_write(bank / REMOTE, to_json(Origins(origins={**known, url: origin})))
