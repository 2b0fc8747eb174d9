"""Export settings from a YAML file, overridden by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from visionad_runtime.errors import ModelError

from visionad_ref import MethodError, Spec, default_spec


@dataclass(frozen=True)
class Preset:
    """A named way to run the method. ``None`` is the backbone's default.

    ``sides``: kind of backbone → side in pixels to which the picture is resized, without a crop; rounded down to a multiple
    of the patch.
    """

    about: str
    views: tuple[str, ...] | None = None
    top_share: float | None = None
    sides: Mapping[str, int] | None = None
    rarity: bool | None = None

    def settings(self, spec: Spec) -> dict[str, Any]:
        """Its :class:`ExportConfig` settings for a backbone."""
        side = None if self.sides is None else self.sides[spec.kind] // spec.patch * spec.patch
        return {"views": self.views, "top_share": self.top_share, "rarity": self.rarity, "resize": side, "crop": side}


PRESETS = {
    "paper": Preset("as published: three views, centre crop, score over 1 % of the map"),
    "sharp": Preset(
        "one view of the whole picture, score over 0.2 % of the map; costs less",
        views=("original",),
        top_share=0.002,
        sides={"vit": 448, "pyramid": 288},
    ),
    "keen": Preset(
        "sharp, and a patch counts the more, the less of its like there is elsewhere in the picture; for parts that vary",
        views=("original",),
        top_share=0.002,
        sides={"vit": 448, "pyramid": 288},
        rarity=True,
    ),
}
"""Evidence, and what else was tried: ``docs/presets.md``."""


def parse_layers(text: str) -> tuple[int, ...]:
    """``"4-18"`` → (4, …, 18), ``"5"`` → (5,).

    Raises:
        ModelError: not of that form, or falling.
    """
    first, dash, last = text.strip().partition("-")
    try:
        layers = tuple(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        layers = ()
    if not layers:
        raise ModelError(f"layers {text!r}: wanted A-B with A <= B, e.g. 2-9, or one number")
    return layers


def parse_views(text: str) -> tuple[str, ...]:
    """``"original, flip"`` → ("original", "flip"); whether they exist is the reference's to say."""
    return tuple(view.strip() for view in text.split(",") if view.strip())


def _from_text(value: Any) -> Any:
    return parse_views(value) if isinstance(value, str) else value


def _from_number(value: Any) -> Any:
    """One layer, which YAML takes for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ExportConfig(BaseModel):
    """What ``visionad export`` may be told. ``None`` means the backbone's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str | None = None
    preset: str | None = None
    weights: Path | None = None
    resize: int | None = None
    crop: int | None = None
    layers: Annotated[str | None, BeforeValidator(_from_number)] = None
    views: Annotated[tuple[str, ...] | None, BeforeValidator(_from_text)] = None
    top_share: float | None = None
    rarity: bool | None = None
    class_token: str | None = None
    precision: str | None = None

    def override(self, **options: Any) -> ExportConfig:
        """The same settings, but for every option that is not ``None``."""
        return ExportConfig(**{**self.model_dump(), **{k: v for k, v in options.items() if v is not None}})

    def resolved(self) -> ExportConfig:
        """The same with the preset's settings where nothing else is said.

        Raises:
            ModelError: unknown preset, no or unknown backbone.
        """
        if self.backbone is None:
            raise ModelError("say which backbone: --backbone NAME, or a --config that names one")
        if self.preset is None:
            return self
        preset = PRESETS.get(self.preset)
        if preset is None:
            raise ModelError(f"preset {self.preset!r} is not known; choose {' or '.join(PRESETS)}")
        try:
            spec = default_spec(self.backbone)
        except MethodError as exc:
            raise ModelError(str(exc)) from None
        return ExportConfig(**preset.settings(spec)).override(**self.model_dump())


def load_config(path: Path) -> ExportConfig:
    """Read a YAML export config. ``weights`` is relative to the config's folder.

    Raises:
        ModelError: unreadable, not YAML, unknown or wrongly typed settings.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelError(f"config {path} cannot be read: {exc.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(f"config {path} is not YAML: {exc}") from None
    try:
        config = ExportConfig.model_validate({} if raw is None else raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(
            f"config {path}: {where}: {first['msg']}; known settings: {', '.join(ExportConfig.model_fields)}"
        ) from None
    return config.override(weights=path.parent / config.weights) if config.weights else config
