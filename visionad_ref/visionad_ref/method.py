"""The method after the backbone, one short function a step (method, sections 1 and 3 to 5)."""

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
TOP_SHARE = 0.01

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Normalised images (N, 3, H, W) → unit patch tokens (N, P, D) and unit class tokens (N, Dc)."""


class ImageError(MethodError):
    """An image that the method does not define, such as one of 16 bits."""


# --- section 1: from image to input ------------------------------------------------------------------------------


def resize_crop(image: Image.Image, spec: Spec) -> Image.Image:
    """Resize the whole image to ``resize`` × ``resize`` and keep the centre ``crop`` × ``crop``, RGB, 8 bit.

    Across, then down, as the method has it: left to itself, Pillow from 12.2 on takes tall images down first.

    Raises:
        ImageError: more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"image has mode {image.mode!r}, more than 8 bits a channel; convert it to 8 bit first")
    rgb = image.convert("RGB")
    across = rgb.resize((spec.resize, rgb.height), Image.Resampling.BILINEAR)
    square = across.resize((spec.resize, spec.resize), Image.Resampling.BILINEAR)
    at = round((spec.resize - spec.crop) / 2)
    return square.crop((at, at, at + spec.crop, at + spec.crop))


def normalise(cropped: Image.Image, spec: Spec) -> Tensor:
    """8-bit RGB → float32 (3, H, W), ``(x / 255 - mean) / std``."""
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def preprocess(image: Image.Image, spec: Spec) -> Tensor:
    """Image → float32 (3, crop, crop), normalised."""
    return normalise(resize_crop(image, spec), spec)


# --- section 3: views, poses, memory bank --------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "original": lambda image: image,
    "flip": lambda image: image.flip(-2),
    "clamp": lambda image: image.clamp(min=0),
}
"""The views an image is seen in, on normalised (…, H, W)."""


def poses(image: Tensor) -> list[Tensor]:
    """The six poses of (…, H, W): four counter-clockwise quarter turns, flipped along H, flipped along W."""
    turns = [torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)]
    return [*turns, image.flip(-2), image.flip(-1)]


def memory_bank(encode: Encode, supports: Tensor, view: str) -> Tensor:
    """Patch tokens of all supports (K, 3, H, W) in all poses of one view: (K · 6 · P, D), unit rows."""
    tokens = [encode(pose[None])[0][0] for support in supports for pose in poses(VIEWS[view](support))]
    return torch.cat(tokens)


@dataclass(frozen=True)
class ClassBank:
    """What is remembered of one class.

    Attributes:
        rows: view → (K · 6 · P, D) unit patch tokens.
        class_tokens: (K, Dc) unit class tokens of the supports in the first view, unturned.
    """

    rows: dict[str, Tensor]
    class_tokens: Tensor


# --- section 4: from tokens to map and score -----------------------------------------------------------------------


def distances(tokens: Tensor, rows: Tensor) -> Tensor:
    """``1 - max cos`` of each of the (P, D) tokens to its nearest of the (M, D) rows: (P,) float32 in 0..2.

    In float64, so that what is called right does not depend on how a matrix product was blocked.
    """
    return (1 - (tokens.double() @ rows.double().T).amax(dim=1)).float()


REACH, FLOOR = 2, 0.05


def rarity(tokens: Tensor, side: int) -> Tensor:
    """Weight of each of the (side², D) tokens of an image: the fourth root of its cosine distance, at least ``FLOOR``, to the
    nearest token more than ``REACH`` patches away across or down: (side²,) float32. (Not in the paper.)"""
    down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = torch.stack([down.flatten(), across.flatten()], dim=1)
    near = (at[:, None] - at[None]).abs().amax(dim=2) <= REACH
    elsewhere = (tokens.double() @ tokens.double().T).masked_fill(near, -math.inf).amax(dim=1)
    return ((1 - elsewhere).clamp(min=FLOOR) ** 0.25).float()


def fuse(grids: Mapping[str, Tensor]) -> Tensor:
    """Add the views' (grid, grid) distances, the ``flip`` one flipped back: range 0..2 times the number of views."""
    return torch.stack([VIEWS[view](grid) if view == "flip" else grid for view, grid in grids.items()]).sum(0)


def upsample(grid: Tensor, size: int = MAP_SIZE) -> Tensor:
    """(grid, grid) → (size, size), bilinear between cell centres."""
    return F.interpolate(grid[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def image_score(anomaly_map: Tensor, share: float = TOP_SHARE) -> float:
    """Mean of the largest ``share`` of the 256 × 256 map; the paper takes 1 %, its 655 largest."""
    return float(anomaly_map.flatten().topk(max(1, int(share * anomaly_map.numel()))).values.double().mean())


# --- section 5: which class? ---------------------------------------------------------------------------------------


LIMITS = {"fused": (0.68, 0.50), "final": (0.85, 0.60)}
"""Widest and tightest unlikeness up to which an image is of a class, by kind of class token."""


def out_of_distribution_image(side: int) -> Image.Image:
    """A synthetic image that is like no part: smooth gradients, and fine texture in every other cell of a checkerboard.

    Integer arithmetic alone, so its bytes depend on ``side`` only.
    """
    y, x = np.mgrid[:side, :side]
    last = max(side - 1, 1)
    smooth = np.stack([255 * x // last, 255 * y // last, 255 * (2 * last - x - y) // (2 * last)], axis=-1)
    fine = (7 * x * x + 13 * y * y + 5 * x * y) // 16 % 96 - 48
    textured = (x // 24 + y // 24) % 2 == 1
    return Image.fromarray(np.clip(smooth + (fine * textured)[..., None], 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Route:
    """Nearest class, its cosine distance 0..2, the margin to the second class (infinite without one), known or not."""

    nearest: str
    distance: float
    margin: float
    unknown: bool


def centered_distance(class_token: Tensor, nearest: Tensor, known: Tensor, strange: Tensor) -> float:
    """How little an image has of its nearest class: 0 nothing else, 1 nothing in common, 2 the opposite.

    Class tokens of all images share a large part. Seen from their middle, that of the ``known`` (C, Dc) and of the
    ``strange`` image's (Dc,), like and unlike directions come apart. (The paper has no such rule.)
    """
    middle = torch.cat([known, strange[None]]).double().mean(0)
    return 1 - float(F.cosine_similarity(class_token.double() - middle, nearest.double() - middle, dim=0))


def route(class_token: Tensor, classes: Mapping[str, ClassBank], strange: Tensor, kind: str = "fused") -> Route:
    """Find the class of an image by its class token (Dc,): arg-min of the distance to each class's first support.

    Args:
        strange: class token (Dc,) of the ``out_of_distribution_image``.
        kind: of class token, ``fused`` or ``final``.
    """
    found = sorted(
        (1 - float(class_token.double() @ bank.class_tokens[0].double()), name) for name, bank in classes.items()
    )
    distance, nearest = found[0]
    margin = found[1][0] - distance if len(found) > 1 else math.inf
    known = torch.stack([bank.class_tokens[0] for bank in classes.values()])
    first, *others = classes[nearest].class_tokens
    spread = [centered_distance(other, first, known, strange) for other in others]
    widest, tightest = LIMITS[kind]
    limit = min(widest, tightest + max(spread)) if spread else widest  # supports that look alike: a sharper limit
    return Route(nearest, distance, margin, centered_distance(class_token, first, known, strange) > limit)
