"""Files at a URL: a folder of this machine, a web server (read only), or an object store by fsspec.

A file appears whole or not at all. ``create`` fails if the file exists, also if two processes create it at the same moment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ..errors import VisionADError
from ..formats.files import atomic_file, atomic_write, fsync_folder

PIECE = 1 << 20
"""Bytes of a file that are read or written at once."""
HTTP_SECONDS = 60.0
"""Without a byte from a web server."""


class FileMissingError(Exception):
    """There is no such file."""


class ForbiddenError(VisionADError):
    """The store does not let a file be read, or does not say that it is missing."""


class Storage(Protocol):
    """Files below a URL. Names are relative, with forward slashes."""

    @property
    def url(self) -> str:
        """URL of the folder, for messages."""

    def read(self, name: str, /) -> bytes:
        """Return a file's bytes. Raises :class:`FileMissingError`."""

    def pieces(self, name: str, start: int, /) -> Iterator[tuple[int, bytes]]:
        """Yield offset and bytes from ``start``, or from 0 if the server cannot skip. Raises :class:`FileMissingError`."""

    def size(self, name: str, /) -> int | None:
        """Return the size of a file, or ``None`` if there is none."""

    def write(self, name: str, data: bytes, /) -> None:
        """Write or replace a file."""

    def upload(self, name: str, source: Path, /) -> None:
        """Write or replace a file from one of this machine."""

    def create(self, name: str, data: bytes, /) -> None:
        """Write a new file. Raises ``FileExistsError`` if there is one, whoever else creates it meanwhile."""

    def list(self, folder: str, /) -> list[str]:
        """Return the names of the files in a folder and below, relative to it; none if there is no folder."""

    def delete(self, name: str, /) -> None:
        """Delete a file. One that is missing is no error."""

    def age(self, name: str, /) -> float | None:
        """Return the seconds since a file was written, or ``None`` if that is not known."""


def open_storage(url: str) -> Storage:
    """Return the storage of a URL.

    Args:
        url: a folder, ``file://``, ``http://`` or ``https://``, or any other that fsspec has a driver for.

    Raises:
        VisionADError: The URL's scheme is unknown or its driver is not installed.
    """
    folder, scheme = local_folder(url), url.partition("://")[0]
    if folder is not None:
        return LocalStorage(folder)
    if scheme in ("http", "https"):
        return HttpStorage(url)
    return FsspecStorage(url)


def local_folder(url: str) -> Path | None:
    """Return the folder of this machine that a URL names; ``None`` for another URL."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    return Path(urllib.parse.unquote(rest)) if scheme in ("file", "local") else None


class LocalStorage:
    """A folder of this machine, or of a network share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissingError(f"{self.folder / name}") from None
        except OSError as exc:
            raise _failed(self.url, "read", name, exc) from None

    def pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        try:
            with open(self.folder / name, "rb") as file:
                file.seek(start)
                while data := file.read(PIECE):
                    yield start, data
                    start += len(data)
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissingError(f"{self.folder / name}") from None
        except OSError as exc:
            raise _failed(self.url, "read", name, exc) from None

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self._folder_of(name)
        atomic_write(self.folder / name, data)

    def upload(self, name: str, source: Path) -> None:
        self._folder_of(name)
        with atomic_file(self.folder / name) as file, open(source, "rb") as given:
            while data := given.read(PIECE):
                file.write(data)

    def create(self, name: str, data: bytes) -> None:
        self._folder_of(name)
        target = self.folder / name
        temp = target.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temp, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _link(temp, target)
            fsync_folder(target.parent)
        except FileExistsError:
            raise
        except OSError as exc:
            raise _failed(self.url, "write", name, exc) from None
        finally:
            temp.unlink(missing_ok=True)

    def list(self, folder: str) -> list[str]:
        root = self.folder / folder
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
        return sorted(path.relative_to(root).as_posix() for path in files)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()

    def age(self, name: str) -> float | None:
        try:
            return max(0.0, time.time() - (self.folder / name).stat().st_mtime)
        except OSError:
            return None

    def _folder_of(self, name: str) -> None:
        try:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise _failed(self.url, "write", name, exc) from None


def _link(temp: Path, target: Path) -> None:
    """Give a file its name unless the name is taken, in one step."""
    try:
        os.link(temp, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.name != "nt":
            raise
        temp.rename(target)  # fails on Windows if the target exists


class HttpStorage:
    """A web server. Nothing can be written."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def _open(self, name: str, start: int = 0) -> Any:
        address = f"{self.url}/{urllib.parse.quote(name)}"
        request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            return urllib.request.urlopen(request, timeout=HTTP_SECONDS)
        except urllib.error.HTTPError as exc:
            if exc.code in (404, 410):
                raise FileMissingError(address) from None
            if exc.code == 416 and start:  # nothing is left after `start`
                return None
            error = ForbiddenError if exc.code in (401, 403) else VisionADError
            raise error(f"{address}: expected a file, got HTTP status {exc.code} {exc.reason}") from None
        except (OSError, ValueError) as exc:
            raise _failed(self.url, "read", name, exc) from None

    def read(self, name: str) -> bytes:
        return b"".join(data for _, data in self.pieces(name, 0))

    def pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        answer = self._open(name, start)
        if answer is None:
            return
        with answer:
            offset = start if answer.status == 206 else 0  # many servers send the whole file whatever is asked
            expected = answer.headers.get("Content-Length")
            end = None if expected is None else offset + int(expected)
            try:
                while data := answer.read(PIECE):
                    yield offset, data
                    offset += len(data)
            except (OSError, ValueError) as exc:
                raise _failed(self.url, "read", name, exc) from None
            if end is not None and offset < end:
                raise VisionADError(f"{self.url}/{name}: the connection ended after {offset} of {end} bytes; run again")

    def size(self, name: str) -> int | None:
        try:
            with contextlib.closing(self._open(name)) as answer:
                length = answer.headers.get("Content-Length")
                return int(length) if length is not None else -1
        except FileMissingError:
            return None

    def _refuse(self) -> VisionADError:
        return VisionADError(
            f"{self.url}: a web server is read only; push to a folder or an object store such as s3://"
        )

    def write(self, *_: object) -> None:
        raise self._refuse()

    def upload(self, *_: object) -> None:
        raise self._refuse()

    def create(self, *_: object) -> None:
        raise self._refuse()

    def list(self, folder: str) -> list[str]:
        raise VisionADError(f"{self.url}/{folder}: a web server cannot list its files; use the store itself")

    def delete(self, *_: object) -> None:
        raise self._refuse()

    def age(self, *_: object) -> float | None:
        return None


class FsspecStorage:
    """An object store, or anything else that fsspec has a driver for."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec
        except ModuleNotFoundError:
            raise VisionADError(f"{url} takes fsspec: pip install 'visionad[fleet]'") from None
        try:
            # Listings change while a fleet works on them.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as exc:
            raise VisionADError(f"{url} cannot be opened: {exc}") from None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _talking(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, VisionADError, FileMissingError):
            raise
        except Exception as exc:  # drivers raise errors of their own libraries
            raise _failed(self.url, what, name, exc) from None

    def read(self, name: str) -> bytes:
        try:
            with self._talking("read", name):
                data: bytes = self._fs.cat_file(self._path(name))
                return data
        except FileNotFoundError:
            raise FileMissingError(f"{self.url}/{name}") from None

    def pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        end = self.size(name)
        if end is None:
            raise FileMissingError(f"{self.url}/{name}")
        while start < end:
            with self._talking("read", name):
                data: bytes = self._fs.cat_file(self._path(name), start=start, end=min(end, start + PIECE))
            if not data:
                raise VisionADError(f"{self.url}/{name}: ended after {start} of {end} bytes; run again")
            yield start, data
            start += len(data)

    def size(self, name: str) -> int | None:
        try:
            with self._talking("read", name):
                return int(self._fs.info(self._path(name), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with self._talking("write", name):
            self._fs.pipe_file(self._path(name), data)

    def upload(self, name: str, source: Path) -> None:
        with self._talking("write", name):
            self._fs.put_file(str(source), self._path(name))

    def create(self, name: str, data: bytes) -> None:
        with self._talking("write", name):
            self._fs.pipe_file(self._path(name), data, mode="create")

    def list(self, folder: str) -> list[str]:
        root = self._path(folder).rstrip("/") + "/"
        try:
            with self._talking("list", folder):
                self._fs.invalidate_cache()
                found = self._fs.find(root)
        except FileNotFoundError:
            return []
        prefix = root.lstrip("/")
        return sorted(path.lstrip("/").removeprefix(prefix) for path in found)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._talking("delete", name):
            self._fs.rm_file(self._path(name))

    def age(self, name: str) -> float | None:
        try:
            with self._talking("read", name):
                written = self._fs.modified(self._path(name))
            return max(0.0, time.time() - float(written.timestamp()))
        except (FileNotFoundError, VisionADError):
            return None


def _failed(url: str, what: str, name: str, exc: BaseException) -> VisionADError:
    reason = " ".join((getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).split())
    error = ForbiddenError if isinstance(exc, PermissionError) else VisionADError
    return error(f"cannot {what} {url}/{name}: {reason}")
