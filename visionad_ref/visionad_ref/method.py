"""The method around the backbone, one short function per step (sections 1 and 3 to 5 of the method)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .backbone import MethodError, Spec

MAP_SIZE = 256
TOP_FRACTION = 0.01

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Normalised images (N, 3, H, W) -> unit patch tokens (N, P, D) and unit class tokens (N, Dc)."""


class ImageError(MethodError):
    """The method does not define this image, for example one of 16 bits."""


# --- section 1: from image to input ------------------------------------------------------------------------------


def resize_crop(image: Image.Image, spec: Spec) -> Image.Image:
    """Resize the whole image to ``resize`` × ``resize`` and keep the centre ``crop`` × ``crop``, RGB, 8 bit.

    The method resizes horizontally, then vertically. Pillow from 12.2 on would resize tall images vertically first.

    Raises:
        ImageError: The image has more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"expected 8 bits a channel, got mode {image.mode!r}; convert the image to 8 bits")
    rgb = image.convert("RGB")
    across = rgb.resize((spec.resize, rgb.height), Image.Resampling.BILINEAR)
    square = across.resize((spec.resize, spec.resize), Image.Resampling.BILINEAR)
    at = round((spec.resize - spec.crop) / 2)
    return square.crop((at, at, at + spec.crop, at + spec.crop))


def normalise(cropped: Image.Image, spec: Spec) -> Tensor:
    """Normalise an 8-bit RGB image to float32 (3, H, W): ``(x / 255 - mean) / std``."""
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def preprocess(image: Image.Image, spec: Spec) -> Tensor:
    """Resize, crop and normalise an image to float32 (3, crop, crop)."""
    return normalise(resize_crop(image, spec), spec)


# --- section 3: views, poses, memory bank --------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "original": lambda image: image,
    "flip": lambda image: image.flip(-2),
    "clamp": lambda image: image.clamp(min=0),
}
"""The views of an image, as functions of normalised (…, H, W)."""


def poses(image: Tensor) -> list[Tensor]:
    """Return the six poses of (…, H, W): rotated by 0, 90, 180, 270 degrees counter-clockwise, flipped along H, flipped along W."""
    rotations = [torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)]
    return [*rotations, image.flip(-2), image.flip(-1)]


def memory_bank(encode: Encode, supports: Tensor, view: str) -> Tensor:
    """Encode all supports (K, 3, H, W) in all poses of one view: unit patch tokens (K · 6 · P, D)."""
    tokens = [encode(pose[None])[0][0] for support in supports for pose in poses(VIEWS[view](support))]
    return torch.cat(tokens)


@dataclass(frozen=True)
class ClassBank:
    """Memory bank of one class.

    Attributes:
        rows: View -> (K · 6 · P, D) unit patch tokens.
        class_tokens: (K, Dc) unit class tokens of the supports in the first view, unrotated.
        defects: View -> (R, D) unit patch tokens of remembered defects; ``None`` without any. (Not in the paper.)
    """

    rows: dict[str, Tensor]
    class_tokens: Tensor
    defects: dict[str, Tensor] | None = None


# --- section 4: from tokens to map and score -----------------------------------------------------------------------


def distances(tokens: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine distance of each of the (P, D) tokens to its nearest of the (M, D) rows: (P,) float32 in 0..2.

    The products are float64, so that the result does not depend on the blocking of a matrix product.
    """
    return (1 - (tokens.double() @ rows.double().T).amax(dim=1)).float()


DEFECT_MARGIN = 2


def raised(good: Tensor, defect: Tensor) -> Tensor:
    """Return the scored distances of patches, with remembered defects: ``good + 2 · max(0, good − defect)``. (Not in the paper.)

    Args:
        good: (P,) distances to the nearest good patch.
        defect: (P,) distances to the nearest patch of a remembered defect.
    """
    return good + DEFECT_MARGIN * (good - defect).clamp(min=0)


EXCLUSION_RADIUS, MIN_DISTANCE = 2, 0.05


def self_similarity_weight(tokens: Tensor, side: int) -> Tensor:
    """Return the weight of each of the (side², D) tokens of an image: (side²,) float32. (Not in the paper.)

    It is the fourth root of the cosine distance, at least ``MIN_DISTANCE``, to the nearest token of the same image that is more
    than ``EXCLUSION_RADIUS`` patches away horizontally or vertically.
    """
    down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = torch.stack([down.flatten(), across.flatten()], dim=1)
    near = (at[:, None] - at[None]).abs().amax(dim=2) <= EXCLUSION_RADIUS
    elsewhere = (tokens.double() @ tokens.double().T).masked_fill(near, -math.inf).amax(dim=1)
    return ((1 - elsewhere).clamp(min=MIN_DISTANCE) ** 0.25).float()


def fuse(grids: Mapping[str, Tensor]) -> Tensor:
    """Add the views' (grid, grid) distances, with ``flip`` flipped back. The range is 0..2 times the number of views."""
    return torch.stack([VIEWS[view](grid) if view == "flip" else grid for view, grid in grids.items()]).sum(0)


def upsample(grid: Tensor, size: int = MAP_SIZE) -> Tensor:
    """Interpolate (grid, grid) to (size, size), bilinearly between cell centres."""
    return F.interpolate(grid[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def image_score(anomaly_map: Tensor, fraction: float = TOP_FRACTION) -> float:
    """Return the mean of the largest ``fraction`` of the map's pixels. The paper takes 1 %: 655 of 256 × 256."""
    return float(anomaly_map.flatten().topk(max(1, int(fraction * anomaly_map.numel()))).values.double().mean())


# --- section 5: which class? ---------------------------------------------------------------------------------------


LIMITS = {"fused": (0.68, 0.50), "final": (0.85, 0.60)}
"""Kind of class token -> largest and smallest limit of the centered distance at which an image belongs to a class."""


def out_of_distribution_image(side: int) -> Image.Image:
    """Return a synthetic image that resembles no part: smooth gradients, with fine texture in every other cell of a checkerboard.

    Integer arithmetic makes its bytes depend only on ``side``.
    """
    y, x = np.mgrid[:side, :side]
    last = max(side - 1, 1)
    smooth = np.stack([255 * x // last, 255 * y // last, 255 * (2 * last - x - y) // (2 * last)], axis=-1)
    fine = (7 * x * x + 13 * y * y + 5 * x * y) // 16 % 96 - 48
    textured = (x // 24 + y // 24) % 2 == 1
    return Image.fromarray(np.clip(smooth + (fine * textured)[..., None], 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Route:
    """The class that an image is matched to.

    Attributes:
        nearest: The nearest class.
        distance: Its cosine distance, 0..2.
        margin: Margin to the second class; infinite without one.
        unknown: Whether the image belongs to no class.
    """

    nearest: str
    distance: float
    margin: float
    unknown: bool


def centered_distance(class_token: Tensor, nearest: Tensor, known: Tensor, outside: Tensor) -> float:
    """Return the cosine distance to the nearest class after centering: 0 same direction, 1 orthogonal, 2 opposite.

    Class tokens of all images share a large component. Relative to their mean, similar and dissimilar directions separate. The mean
    is that of the ``known`` tokens (C, Dc) and of the out-of-distribution image's (Dc,). (The paper has no such rule.)
    """
    mean = torch.cat([known, outside[None]]).double().mean(0)
    return 1 - float(F.cosine_similarity(class_token.double() - mean, nearest.double() - mean, dim=0))


def route(class_token: Tensor, classes: Mapping[str, ClassBank], outside: Tensor, kind: str = "fused") -> Route:
    """Find the class of an image by its class token: the arg-min of the distance to each class's first support.

    Args:
        class_token: Class token (Dc,) of the image.
        classes: The classes by name.
        outside: Class token (Dc,) of the ``out_of_distribution_image``.
        kind: Kind of class token, ``fused`` or ``final``.
    """
    by_distance = sorted(
        (1 - float(class_token.double() @ bank.class_tokens[0].double()), name) for name, bank in classes.items()
    )
    distance, nearest = by_distance[0]
    margin = by_distance[1][0] - distance if len(by_distance) > 1 else math.inf
    known = torch.stack([bank.class_tokens[0] for bank in classes.values()])
    first, *others = classes[nearest].class_tokens
    spread = [centered_distance(other, first, known, outside) for other in others]
    largest, smallest = LIMITS[kind]
    limit = min(largest, smallest + max(spread)) if spread else largest  # similar supports make it smaller
    return Route(nearest, distance, margin, centered_distance(class_token, first, known, outside) > limit)
