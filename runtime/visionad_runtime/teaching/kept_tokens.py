"""An engine that keeps the tokens it computes in a folder, so that a second replay of the same images encodes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..engine.base import Engine, Tokens
from ..errors import VisionADError
from ..formats.files import atomic_write
from ..formats.manifest import FeatureIdentity

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine

F32 = NDArray[np.float32]


class KeptTokensEngine:
    """A backbone whose tokens are kept, one file for each input row. It works on the host.

    A file is named by the model's digest, the backend, the precision and the pixels of the prepared input. So it never stands for
    another image, view, model or way to compute. A file that is damaged or does not fit is computed anew.

    Attributes:
        name: of the inner engine.
        batch_size: of the inner engine.
        precision: of the inner engine.
        info: of the inner engine.
        folder: where tokens are kept.
        key: model, backend and precision, as bytes.
        computed: rows that were encoded.
        reused: rows that were read.
    """

    requires_device_pipeline = False

    def __init__(self, engine: Engine, folder: Path, model: str, identity: FeatureIdentity) -> None:
        """Take an engine, which stays open when this one is closed.

        Args:
            engine: computes what is not kept.
            folder: where tokens are kept.
            model: sha256 of the model's content.
            identity: of the model.

        Raises:
            VisionADError: The folder cannot be made.
        """
        self._engine, self.folder = engine, folder
        self.name, self.batch_size = engine.name, engine.batch_size
        self.precision, self.info = engine.precision, engine.info
        self.key = f"{model} {engine.name} {engine.precision}\n".encode()
        self._shapes = (identity.grid**2, identity.dim), (identity.class_token_dim,)
        self.computed = self.reused = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise VisionADError(f"--tokens {folder}: {exc.strerror}; choose a folder that can be written") from None

    @property
    def device_engine(self) -> Callable[[], DeviceEngine] | None:
        """``None``: kept tokens are in host memory."""
        return None

    def encode(self, images: F32, class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`. Class tokens are always kept too.

        Raises:
            VisionADError: The folder cannot be written, or the inner engine failed.
        """
        images = np.ascontiguousarray(images)
        return self.encode_named(images, self.names(images), class_token)

    def names(self, images: F32) -> list[str]:
        """Return the names that the tokens of prepared images are kept by, one per row."""
        return [self._name(row) for row in np.ascontiguousarray(images)]

    def encode_named(self, images: F32, names: Sequence[str], class_token: bool = True) -> Tokens:
        """Do what :meth:`encode` does for images whose :meth:`names` are known."""
        paths = [self._path(name) for name in names]
        kept = [self._read(path) for path in paths]
        missing = [i for i, tokens in enumerate(kept) if tokens is None]
        if missing:
            fresh = self._engine.encode(images[missing], class_token=True)
            assert fresh.cls is not None
            for place, patch, cls in zip(missing, fresh.patch, fresh.cls, strict=True):
                kept[place] = patch, cls
                tensors = {"patch": np.ascontiguousarray(patch), "cls": np.ascontiguousarray(cls)}
                atomic_write(paths[place], save_tensors(tensors))
        self.computed += len(missing)
        self.reused += len(images) - len(missing)
        return _stacked([tokens for tokens in kept if tokens is not None], class_token)

    def read_named(self, names: Sequence[str], class_token: bool = True) -> Tokens | None:
        """Return kept tokens by :meth:`names`, or ``None`` if some are missing or damaged."""
        kept = [self._read(self._path(name)) for name in names]
        rows = [tokens for tokens in kept if tokens is not None]
        if len(rows) < len(kept):
            return None
        self.reused += len(rows)
        return _stacked(rows, class_token)

    def close(self) -> None:
        """Do nothing: the inner engine belongs to its inspector."""

    def _name(self, image: F32) -> str:
        digest = hashlib.sha256(self.key)
        digest.update(image.data)
        return digest.hexdigest()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, path: Path) -> tuple[F32, F32] | None:
        try:
            tensors = load_tensors(path.read_bytes())
            patch, cls = tensors["patch"], tensors["cls"]
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
            return None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        fits = (patch.shape, cls.shape) == self._shapes and {patch.dtype, cls.dtype} == {np.dtype(np.float32)}
        return (patch, cls) if fits else None


def _stacked(rows: Sequence[tuple[F32, F32]], class_token: bool) -> Tokens:
    return Tokens(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]) if class_token else None)
