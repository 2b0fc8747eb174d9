"""A preset: a :class:`~visionad_runtime.scoring.spec.ScoringSpec` by name, with the image size that it is meant for."""

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
    """Sides in pixels: the image is resized to ``resize`` × ``resize``, its centre ``crop`` × ``crop`` is inspected."""

    resize: int = Field(ge=8, le=8192)
    crop: int = Field(ge=8, le=8192)

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageSize:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self

    def rounded(self, patch: int) -> ImageSize:
        """Return the size with the crop rounded down to a multiple of ``patch``; where nothing is cropped, nothing is then."""
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
        name: what ``--preset`` takes: the name of its file without the suffix, or the path of a file of the user's own.
        about: one line for people.
        scoring: how to score. It can be chosen whenever a model is opened.
        sizes: kind of backbone → the image size that the scoring is meant for. It is part of a model's identity: an export takes
            it over, and a model of another size cannot be opened with the preset. For a kind that is not named, any size will do.
    """

    name: str
    about: str
    scoring: ScoringSpec
    sizes: Mapping[Kind, ImageSize] = field(default_factory=dict)

    def size(self, kind: Kind, patch: int) -> ImageSize | None:
        """Return the image size for a backbone of this kind and patch size; ``None`` where any will do."""
        return self.sizes[kind].rounded(patch) if kind in self.sizes else None

    def check_size(self, model: ModelManifest) -> None:
        """Check that a model has the size that the preset is meant for.

        Raises:
            VisionADError: it has another.
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
        preset: the name of one of the files in ``presets/``, or the path of a file.

    Raises:
        VisionADError: unknown, unreadable, no TOML, or with settings that are missing, unknown or out of range.
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
        read = _File.model_validate(raw)
        scoring = ScoringSpec(read.scoring.views, read.scoring.top_fraction, read.scoring.self_similarity)
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
    return Preset(name, read.about, scoring, read.preprocess)


def scoring_for(
    model: ModelManifest,
    available: tuple[ViewName, ...],
    preset: str | None = None,
    views: Sequence[str] | None = None,
) -> ScoringSpec:
    """Return how an opened model scores: as a preset says, else as the model was exported; views given beside it win.

    Args:
        model: the model.
        available: the views that the bank holds, or the model where there is no bank.
        preset: as :func:`load_preset` takes it.
        views: some of the available views.

    Raises:
        VisionADError: views that are not available, a preset that does not exist or that is meant for another image size, or
            self-similarity on a grid that is too small for it.
    """
    base = ScoringSpec.of(model)
    if preset is not None:
        chosen = load_preset(preset)
        chosen.check_size(model)
        base = chosen.scoring
        missing = [view for view in base.views if view not in available]
        if views is None and missing:
            raise VisionADError(
                f"preset {chosen.name}: expected the views {', '.join(base.views)}, got only {', '.join(available)}; export and "
                f"enroll with the preset, or choose among these with `--views`"
            )
        views = base.views if views is None else views
    scoring = replace(base, views=choose_views(views, available))
    if scoring.self_similarity:
        check_grid(model.identity.grid)
    return scoring
