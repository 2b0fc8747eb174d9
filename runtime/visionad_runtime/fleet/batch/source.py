"""What a batch run inspects: a folder, a list of files, or Parquet, as an index cut into blocks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ...errors import VisionADError
from ...images.discover import SUFFIXES, find_images
from ...images.scan import scan
from ..parquet import column_names, read_parquet
from .record import RUN_FILE

MAX_BLOCK, MAX_SLOW_BLOCK = 1000, 50
"""Images a block: about a minute of work, on a GPU or of a small backbone, and of a vision transformer on one core."""
MIN_BLOCK = 16
BLOCKS = 64
"""Blocks that a small source is cut into, so that many workers share it evenly."""
IMAGE, CLASS = "image", "class"
"""Columns of a Parquet source."""


class Block(NamedTuple):
    """Images that one worker inspects and writes together.

    Attributes:
        number: place among all blocks of the run.
        first: id of the first image.
        images: paths or URLs.
        classes: class of each image, or ``None`` for one to be routed.
    """

    number: int
    first: int
    images: tuple[str, ...]
    classes: tuple[str | None, ...]


@dataclass(frozen=True)
class Source:
    """Index of all images of a run. An image's id is its place in it.

    Attributes:
        text: where it came from.
        images: paths or URLs, string.
        classes: class of each image, or ``None`` if no image has one.
        block: images a block; 0 if it is to be chosen by the model (:func:`default_block`).
    """

    text: str
    images: pa.ChunkedArray
    classes: pa.ChunkedArray | None
    block: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self) // self.block)

    def size_of(self, number: int) -> int:
        """Return how many images a block has."""
        return min(self.block, len(self) - number * self.block)

    def read_block(self, number: int) -> Block:
        """Return a block."""
        first = number * self.block
        images: list[str] = self.images.slice(first, self.block).to_pylist()
        classes: list[str | None] = [None] * len(images)
        if self.classes is not None:
            classes = self.classes.slice(first, self.block).to_pylist()
        return Block(number, first, tuple(images), tuple(classes))

    def class_names(self) -> set[str]:
        """Return all class names."""
        return set() if self.classes is None else set(self.classes.unique().drop_null().to_pylist())

    def digest(self) -> str:
        """Return the sha256 of names, classes and block size. It does not depend on the files' content.

        A relative path counts with its place: elsewhere, the same name is another image.
        """
        found = hashlib.sha256(f"{len(self)} {self.block}\n".encode())
        for number in range(self.blocks):
            block = self.read_block(number)
            for image, name in zip(block.images, block.classes, strict=True):
                found.update(f"{len(image)} {image}\n{name}\n{_place(image)}".encode("utf-8", "surrogatepass"))
        return found.hexdigest()


def read_source(text: str, block: int | None = None, exclude: Sequence[str] = ()) -> Source:
    """Return the index of a source.

    Args:
        text: a folder of images; an image; a text file with a path or URL a line; or Parquet (a file, a folder of files, or a URL
            that ends in ``.parquet``) with the column ``image`` and, optionally, ``class``.
        block: images a block; ``None`` leaves the choice to the run.
        exclude: patterns for entries of folders of images.

    Raises:
        VisionADError: There is no such source, or it names no image.
    """
    path, classes = Path(text), None
    table = next(iter(sorted(path.glob("*.parquet"))), None) if path.is_dir() else None
    if table is not None and _has_images(path, exclude):
        raise VisionADError(
            f"{text} holds images and Parquet, so what is meant is not known; name {table}, or move one kind away"
        )
    if "://" in text or path.suffix == ".parquet" or table is not None:
        images, classes = _read_parquet(text)
    elif path.is_dir() or path.suffix.lower() in SUFFIXES:
        images = _strings([str(file.path) for file in find_images([path], exclude)])
    else:
        images = _strings(_read_list(path))
    if len(images) == 0:
        raise VisionADError(f"{text}: names no image")
    return Source(text, images, classes, block or 0)


def _has_images(folder: Path, exclude: Sequence[str]) -> bool:
    return bool(scan(folder, SUFFIXES, exclude).images)


def default_block(images: int, *, slow: bool) -> int:
    """Return how many images a block holds. All shards of a run must agree, so nothing is measured.

    Args:
        images: number of images of the source. A small one is cut into :data:`BLOCKS` blocks.
        slow: whether an image takes a second or more.
    """
    return min(MAX_SLOW_BLOCK if slow else MAX_BLOCK, max(MIN_BLOCK, -(-images // BLOCKS)))


def _place(image: str) -> str:
    """Return where a relative path leads, as a line; nothing for what says so itself."""
    if "://" in image or (path := Path(image)).is_absolute():
        return ""
    return f"{os.path.normpath(path.absolute())}\n"


def _strings(values: list[str]) -> pa.ChunkedArray:
    try:
        return pa.chunked_array([values], pa.large_string())
    except (UnicodeEncodeError, pa.ArrowException):
        odd = next(value for value in values if not value.isprintable() or _is_odd(value))
        raise VisionADError(
            f"{odd!r}: expected file names in UTF-8, because Parquet holds no others; rename the file"
        ) from None


def _is_odd(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # editors of Windows begin a file with a mark
    except OSError as exc:
        raise VisionADError(
            f"{path} cannot be read: {exc.strerror}; expected a folder, a list of files, or Parquet"
        ) from None
    except UnicodeDecodeError:
        raise VisionADError(f"{path}: expected a text file with a path a line, in UTF-8, or Parquet") from None
    return [_without_blanks(line) for line in lines if line.strip()]


def _without_blanks(line: str) -> str:
    """Return a path or URL without blanks at its end, unless a file's name ends in them."""
    bare = line.rstrip()
    return line if bare != line and "://" not in line and os.path.lexists(line) else bare


def _parquet_files(text: str) -> Iterator[bytes]:
    """Yield the content of a file, or of the files of a folder in order, at a path or URL."""
    if "://" not in text:
        path = Path(text)
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            if (
                file.parent == path or not (file.parent / RUN_FILE).exists()
            ):  # results of a run below the source are none
                yield file.read_bytes()
        return
    import fsspec

    filesystem, name = fsspec.core.url_to_fs(text)
    found = sorted(filesystem.glob(f"{name}/**/*.parquet")) if filesystem.isdir(name) else [name]
    folders = {file.rpartition("/")[0] for file in found}
    runs = {folder for folder in folders if folder != name and filesystem.exists(f"{folder}/{RUN_FILE}")}
    for file in found:
        if file.rpartition("/")[0] not in runs:
            yield filesystem.cat_file(file)


def _read_parquet(text: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    try:
        tables = []
        for data in _parquet_files(text):
            columns = column_names(data)
            if IMAGE not in columns:
                raise VisionADError(f"{text}: expected a column {IMAGE!r} with paths or URLs, got {', '.join(columns)}")
            tables.append(read_parquet(data, (IMAGE, CLASS)))
        table = pa.concat_tables(tables, promote_options="default")
    except ModuleNotFoundError as exc:
        raise VisionADError(f"{text} takes {exc.name}: pip install 'visionad[batch]'") from None
    except (OSError, ValueError, ImportError, pa.ArrowException) as exc:
        raise VisionADError(f"{text}: expected Parquet: {' '.join(str(exc).split())[:300]}") from None
    if table[IMAGE].null_count:
        raise VisionADError(f"{text}: expected a column {IMAGE!r} with a path or URL in each row")
    images = table[IMAGE].cast(pa.large_string())
    classes = table[CLASS].cast(pa.large_string()) if CLASS in table.column_names else None
    return images, classes
