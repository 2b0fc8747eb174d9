"""Revisions of a name at a store.

``ROOT/blobs/ab/SHA256`` holds files, ``ROOT/names/NAME/000007.json`` a revision, ``ROOT/names/NAME/signatures/SHA256.minisig`` the
signature of the revision with this digest, and ``ROOT/names/NAME/latest`` a hint where to look for the newest.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from ...bank.folder import utc_now
from ...errors import VisionADError
from ...formats.files import sha256_bytes
from ...formats.strict import Strict
from ..storage import FileMissingError, ForbiddenError, Storage, local_folder, open_storage
from .minisign import PublicKey, SecretKey, SignatureError, sign, verify

NAMES, BLOBS, LATEST, SIGNATURES = "names", "blobs", "latest", "signatures"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REVISION_FILE = re.compile(r"(\d{6,})\.json")
Kind = Literal["bank", "model"]


class Blob(Strict):
    """A file of a revision."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Revision(Strict):
    """What a revision holds.

    Attributes:
        kind: ``bank`` or ``model``.
        name: name at the store.
        revision: number, from 1 without a gap.
        previous: sha256 of the revision before it; ``None`` for the first.
        digest: content digest of bank or model, as results name it.
        change: what was changed last.
        who: who pushed it.
        created: when, in UTC.
        files: path in the folder → file.
        manifest: the folder's manifest.
    """

    format: Literal["visionad-revision"] = "visionad-revision"
    schema_version: Literal[1] = 1
    kind: Kind
    name: str
    revision: int = Field(ge=1)
    previous: str | None
    digest: str
    change: str
    who: str
    created: str
    files: dict[str, Blob]
    manifest: dict[str, Any]


class Target(NamedTuple):
    """A name at a store, and the revision that is asked for."""

    root: str
    name: str
    revision: int | None

    @property
    def url(self) -> str:
        """URL without the revision."""
        return f"{self.root}/{self.name}"

    @property
    def place(self) -> str:
        """The same, however a folder is spelled."""
        return place_of(self.url)


def place_of(url: str) -> str:
    """Return a URL as it is, and a folder of this machine as an absolute path."""
    folder = local_folder(url)
    return url if folder is None else os.path.normpath(folder.absolute())


class Signed(NamedTuple):
    """A revision as it lies at the store.

    Attributes:
        data: its bytes.
        revision: the same, read.
    """

    data: bytes
    revision: Revision

    @property
    def sha256(self) -> str:
        """sha256 of its bytes."""
        return sha256_bytes(self.data)


def parse_target(text: str, *, revision: bool = True) -> Target:
    """Return the store, name and revision of ``URL/NAME[@REV]``.

    Raises:
        VisionADError: It is malformed.
    """
    base, separator, number = text.rpartition("@")
    if not separator or "/" in number:  # an @ of a user name in the URL
        base, number = text, ""
    root, slash, name = base.rstrip("/").rpartition("/")
    asked = int(number) if number.isdecimal() and int(number) else None
    if not slash or not root or not _NAME.fullmatch(name) or (separator and number and asked is None):
        raise VisionADError(
            f"{text}: expected URL/NAME{'[@REV]' if revision else ''}, such as s3://plant/visionad/line3"
        )
    if asked is not None and not revision:
        raise VisionADError(f"{text}: expected a name without a revision")
    return Target(root, name, asked)


def blob_name(sha256: str) -> str:
    """Return where a file lies at a store."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


class NamedRevisions:
    """The revisions of one name."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.storage: Storage = open_storage(target.root)
        self._folder = f"{NAMES}/{target.name}"

    # -- read ---------------------------------------------------------------------------------------------------------

    def newest(self, known: int = 0) -> int:
        """Return the number of the newest revision; 0 if there is none.

        Args:
            known: a revision that is known to exist. The hint at the store may be older, and revisions have no gap.
        """
        number = max(known, self._hint())
        if not number:
            numbers = self._listed()
            number = numbers[-1] if numbers else 0
        first = number
        while self._has(number + 1, denied=number > 0):
            if number == first and self._has(0, denied=True):  # revisions begin at 1
                raise VisionADError(
                    f"{self.storage.url} has an answer for files that do not exist, so its newest revision cannot be found; have "
                    "the server answer 404 there, or name a revision"
                )
            number += 1
        return number

    def _has(self, number: int, *, denied: bool) -> bool:
        """Return whether there is a revision.

        Args:
            number: its number.
            denied: whether a file that must not be read counts as missing. S3 says so of missing files to whoever may not list.
        """
        try:
            return self.storage.size(self._file(number)) is not None
        except ForbiddenError:
            if denied:
                return False
            raise

    def _hint(self) -> int:
        try:
            text = self.storage.read(f"{self._folder}/{LATEST}").decode("ascii", "replace").strip()
        except FileMissingError:
            return 0
        number = int(text) if text.isdecimal() and len(text) < 10 else 0
        return number if number and self._has(number, denied=True) else 0

    def _listed(self) -> list[int]:
        try:
            names = self.storage.list(self._folder)
        except VisionADError:  # a web server: its revisions begin at 1
            return [1] if self.storage.size(self._file(1)) is not None else []
        return sorted(int(match[1]) for name in names if (match := _REVISION_FILE.fullmatch(name)))

    def numbers(self) -> list[int]:
        """Return the numbers of all revisions that are kept, ascending."""
        newest = self.newest()
        try:
            return self._listed() if self.storage.list(self._folder) else []
        except VisionADError:
            return [n for n in range(1, newest + 1) if self._has(n, denied=n < newest)]

    def read(self, number: int, keys: Sequence[PublicKey] | None) -> Signed:
        """Return a revision.

        Args:
            number: its number.
            keys: pinned keys that its signature is checked with; ``None`` checks nothing.

        Raises:
            VisionADError: It is missing or damaged.
            SignatureError: Its signature is missing, damaged, or by another key.
        """
        where = f"{self.target.url}@{number}"
        try:
            data = self.storage.read(self._file(number))
        except FileMissingError:
            raise VisionADError(
                f"{where}: no such revision; `visionad bank log {self.target.url}` lists them"
            ) from None
        if keys is not None:  # before anything in it is believed
            try:
                signature = self.storage.read(self._signature(sha256_bytes(data)))
            except FileMissingError:
                raise SignatureError(f"{where} was changed after it was signed, or its signature is missing") from None
            verify(data, signature, keys, where)
        try:
            revision = Revision.model_validate(json.loads(data))
        except (ValueError, ValidationError, RecursionError):
            raise VisionADError(f"{where} is damaged, or was written by a newer release") from None
        if (revision.name, revision.revision) != (self.target.name, number):
            raise VisionADError(
                f"{where}: expected this revision, got {revision.name}@{revision.revision}; nothing was changed"
            )
        for path in revision.files:
            if path.startswith("/") or "\\" in path or ":" in path or ".." in path.split("/"):
                raise VisionADError(f"{where}: {path!r} is no path in a folder; nothing was changed")
        return Signed(data, revision)

    def log(self, keys: Sequence[PublicKey] | None) -> Iterator[Signed]:
        """Yield all revisions that are kept, oldest first.

        Raises:
            VisionADError: As for :meth:`read`, or a revision does not follow the one before it.
        """
        previous: Signed | None = None
        for number in self.numbers():
            signed = self.read(number, keys)
            follows = previous is not None and previous.revision.revision == number - 1
            if follows and previous is not None and signed.revision.previous != previous.sha256:
                raise VisionADError(
                    f"{self.target.url}: revision {number} does not follow {number - 1}: one was replaced"
                )
            yield signed
            previous = signed

    # -- write --------------------------------------------------------------------------------------------------------

    def publish(self, revision: Revision, key: SecretKey) -> Signed:
        """Write the signature, then the revision in one step.

        Raises:
            FileExistsError: Somebody else has published this number.
            VisionADError: The store cannot be written, or cannot create a file only if it is missing.
        """
        if revision.revision == 1:
            self._check_conditional()
        data = (json.dumps(revision.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()
        signed = Signed(data, revision)
        comment = f"{revision.kind} {revision.name} revision {revision.revision} digest {revision.digest}"
        self.storage.write(self._signature(signed.sha256), sign(data, key, comment))
        self.storage.create(self._file(revision.revision), data)
        self.storage.write(f"{self._folder}/{LATEST}", f"{revision.revision}\n".encode())
        return signed

    def _check_conditional(self) -> None:
        """Check that a second creation fails: on a store that ignores the condition, two pushes would both win."""
        probe = f"{self._folder}/.probe-{secrets.token_hex(8)}"
        self.storage.create(probe, b"1")
        try:
            self.storage.create(probe, b"2")
        except FileExistsError:
            return
        finally:
            self.storage.delete(probe)
        raise VisionADError(
            f"{self.target.root}: this store writes over files that must not exist (no If-None-Match), so that two pushes could "
            "both win; use another store"
        )

    def delete(self, number: int) -> None:
        """Delete a revision and its signature."""
        data = self.storage.read(self._file(number))
        self.storage.delete(self._file(number))
        self.storage.delete(self._signature(sha256_bytes(data)))

    def age(self, number: int) -> float | None:
        """Return the seconds since a revision was written."""
        return self.storage.age(self._file(number))

    def _file(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.json"

    def _signature(self, sha256: str) -> str:
        return f"{self._folder}/{SIGNATURES}/{sha256}.minisig"


def new_revision(
    kind: Kind,
    target: Target,
    previous: Signed | None,
    digest: str,
    change: str,
    files: dict[str, Blob],
    manifest: dict[str, Any],
) -> Revision:
    """Return the revision after ``previous``, by this user on this machine."""
    return Revision(
        kind=kind,
        name=target.name,
        revision=1 if previous is None else previous.revision.revision + 1,
        previous=None if previous is None else previous.sha256,
        digest=digest,
        change=change,
        who=_who(),
        created=utc_now(),
        files=files,
        manifest=manifest,
    )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a user name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def read_keys(paths: Sequence[Path]) -> list[PublicKey]:
    """Read pinned keys.

    Raises:
        VisionADError: There is none, or a file is no public key.
    """
    from .minisign import read_public

    if not paths:
        raise VisionADError("expected --pub FILE, the public key of whoever pushes; several may be given")
    return [read_public(path) for path in paths]
