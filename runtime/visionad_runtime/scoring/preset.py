"""Presets: named :class:`~visionad_runtime.scoring.spec.ScoringSpec` values, with the image size that each is meant for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import VisionADError
from ..formats.manifest import ModelManifest, ViewName
from .catalog import preset_file, preset_names
from .self_similarity import check_grid
from .spec import ScoringSpec, choose_views

Kind = Literal["vit", "pyramid"]
"""Kind of backbone."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ImageSize(_Table):
    """Image size in pixels.

    Attributes:
        resize: side that the image is resized to.
        crop: side of the center crop that is inspected.
    """

    resize: int = Field(ge=8, le=8192)
    crop: int = Field(ge=8, le=8192)

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageSize:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self

    def rounded(self, patch: int) -> ImageSize:
        """Return the size with the crop rounded down to a multiple of ``patch``. A size without a crop stays one without."""
        crop = self.crop // patch * patch
        return ImageSize.model_construct(resize=crop if self.crop == self.resize else self.resize, crop=crop)


class _Scoring(_Table):
    views: tuple[ViewName, ...] = Field(min_length=1, strict=False)
    top_fraction: float = Field(gt=0, le=1)
    self_similarity: bool


class _File(_Table):
    about: str
    scoring: _Scoring
    preprocess: dict[Kind, ImageSize] = {}


@dataclass(frozen=True)
class Preset:
    """A named way to score.

    Attributes:
        name: value of ``--preset``: file name without suffix, or the path of the user's own file.
        about: description in one line.
        scoring: scoring settings. They can be chosen whenever a model is opened.
        sizes: kind of backbone → image size that the scoring is meant for. The size is part of a model's identity: export uses it,
            and a model of another size cannot be opened with the preset. A kind without an entry allows any size.
    """

    name: str
    about: str
    scoring: ScoringSpec
    sizes: Mapping[Kind, ImageSize] = field(default_factory=dict)

    def size(self, kind: Kind, patch: int) -> ImageSize | None:
        """Return the image size for a backbone of this kind and patch size, or ``None`` if any size is allowed."""
        return self.sizes[kind].rounded(patch) if kind in self.sizes else None

    def check_size(self, model: ModelManifest) -> None:
        """Check that a model has the image size that the preset is meant for.

        Raises:
            VisionADError: It has another size.
        """
        identity = model.identity
        expected, got = self.size(identity.kind, identity.patch), identity.preprocess
        if expected is not None and (expected.resize, expected.crop) != (got.resize, got.crop):
            raise VisionADError(
                f"preset {self.name}: expected a model with resize {expected.resize}, crop {expected.crop}; got "
                f"{identity.describe()}. The size is fixed at export: export another model with `visionad export --preset "
                f"{self.name}` and enroll its own bank, or give a preset file without [preprocess]"
            )


def load_preset(preset: str) -> Preset:
    """Read a preset.

    Args:
        preset: name of a file in ``presets/``, or path of a file.

    Raises:
        VisionADError: The preset is unknown, unreadable or not TOML, or a setting is missing, unknown or out of range.
    """
    path = preset_file(preset)
    if path is None:
        raise VisionADError(
            f"preset {preset!r}: expected {', '.join(preset_names())}, or the path of a file that ends in .toml"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise VisionADError(f"preset {path} cannot be read: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise VisionADError(f"preset {path} is not TOML: {exc}") from None
    try:
        file = _File.model_validate(raw)
        scoring = ScoringSpec(file.scoring.views, file.scoring.top_fraction, file.scoring.self_similarity)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VisionADError(
            f"preset {path}: {where}: {first['msg']}; expected about, [scoring] with views, top_fraction and self_similarity, and "
            "optionally [preprocess.vit] and [preprocess.pyramid] with resize and crop"
        ) from None
    except VisionADError as exc:
        raise VisionADError(f"preset {path}: {exc}") from None
    name = preset if preset.endswith(".toml") else path.stem
    return Preset(name, file.about, scoring, file.preprocess)


def scoring_for(
    model: ModelManifest,
    available: tuple[ViewName, ...],
    preset: str | None = None,
    views: Sequence[str] | None = None,
) -> ScoringSpec:
    """Return the scoring of an opened model: the preset's, else the one that the model was exported with.

    Args:
        model: manifest of the model.
        available: views that the bank holds, or the model's without a bank.
        preset: argument of :func:`load_preset`.
        views: some of the available views. They override those of the preset.

    Raises:
        VisionADError: A view is not available, the preset does not exist or is meant for another image size, or the grid is too
            small for self-similarity.
    """
    base = ScoringSpec.of(model)
    if preset is not None:
        loaded = load_preset(preset)
        loaded.check_size(model)
        base = loaded.scoring
        missing = [view for view in base.views if view not in available]
        if views is None and missing:
            raise VisionADError(
                f"preset {loaded.name}: expected the views {', '.join(base.views)}, got only {', '.join(available)}; export and "
                f"enroll with the preset, or choose among these with `--views`"
            )
        views = base.views if views is None else views
    scoring = replace(base, views=choose_views(views, available))
    if scoring.self_similarity:
        check_grid(model.identity.grid)
    return scoring
