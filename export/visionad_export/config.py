"""Export settings, from the command line, a YAML file and a preset, in this order of precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from visionad_runtime.errors import ModelError
from visionad_runtime.scoring.preset import load_preset
from visionad_runtime.scoring.spec import PAPER, ScoringSpec

from visionad_ref import MethodError, default_spec


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse layers: ``"4-18"`` to (4, …, 18), ``"5"`` to (5,).

    Raises:
        ModelError: The text has another form, or A > B.
    """
    first, dash, last = text.strip().partition("-")
    try:
        layers = tuple(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        layers = ()
    if not layers:
        raise ModelError(f"layers: expected A-B with A <= B, such as 2-9, or one number, got {text!r}")
    return layers


def parse_views(text: str) -> tuple[str, ...]:
    """Parse views: ``"original, flip"`` to ("original", "flip"). The reference checks the names."""
    return tuple(view.strip() for view in text.split(",") if view.strip())


def _from_text(value: Any) -> Any:
    return parse_views(value) if isinstance(value, str) else value


def _from_number(value: Any) -> Any:
    """Return the text of one layer, which YAML reads as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ExportConfig(BaseModel):
    """Settings of ``visionad export``. ``None`` is the preset's or the backbone's default.

    A YAML file may give ``top_fraction`` and ``self_similarity`` by their older names, ``top_share`` and ``rarity``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str | None = None
    preset: str | None = None
    weights: Path | None = None
    resize: int | None = None
    crop: int | None = None
    layers: Annotated[str | None, BeforeValidator(_from_number)] = None
    views: Annotated[tuple[str, ...] | None, BeforeValidator(_from_text)] = None
    top_fraction: Annotated[float | None, Field(validation_alias=AliasChoices("top_fraction", "top_share"))] = None
    self_similarity: Annotated[bool | None, Field(validation_alias=AliasChoices("self_similarity", "rarity"))] = None
    class_token: str | None = None
    precision: str | None = None

    def override(self, **options: Any) -> ExportConfig:
        """Return the settings with every option that is not ``None`` replaced."""
        return ExportConfig(**{**self.model_dump(), **{k: v for k, v in options.items() if v is not None}})

    def resolved(self) -> ExportConfig:
        """Return the settings completed by the preset.

        Raises:
            ModelError: The backbone is missing or unknown.
            VisionADError: The preset is unknown or faulty.
        """
        if self.backbone is None:
            raise ModelError("expected a backbone, got none; give --backbone NAME, or a --config that names one")
        if self.preset is None:
            return self
        preset = load_preset(self.preset)
        try:
            spec = default_spec(self.backbone)
        except MethodError as exc:
            raise ModelError(str(exc)) from None
        size, scoring = preset.size(spec.kind, spec.patch), preset.scoring
        settings = ExportConfig(
            resize=None if size is None else size.resize,
            crop=None if size is None else size.crop,
            views=scoring.views,
            top_fraction=scoring.top_fraction,
            self_similarity=scoring.self_similarity,
        )
        return settings.override(**self.model_dump())

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`~visionad_export.exporter.export_model`, without the backbone.

        Raises:
            VisionADError: The layers or the scoring are invalid.
        """
        plain = self.model_dump(include={"weights", "resize", "crop", "class_token", "precision"}, exclude_none=True)
        if self.layers is not None:
            plain["layers"] = parse_layers(self.layers)
        return {**plain, "scoring": self.scoring()}

    def scoring(self) -> ScoringSpec:
        """Return the scoring of the model.

        Raises:
            VisionADError: A view is unknown, or the fraction is out of range.
        """
        return ScoringSpec(
            views=PAPER.views if self.views is None else self.views,  # type: ignore[arg-type]  # checked there
            top_fraction=PAPER.top_fraction if self.top_fraction is None else self.top_fraction,
            self_similarity=PAPER.self_similarity if self.self_similarity is None else self.self_similarity,
        )


def load_config(path: Path) -> ExportConfig:
    """Read a YAML file of export settings. ``weights`` is relative to its folder.

    Raises:
        ModelError: The file cannot be read or is not YAML, or a setting is unknown or has the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelError(f"config {path} cannot be read: {exc.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(f"config {path} is not YAML: {exc}") from None
    try:
        config = ExportConfig.model_validate({} if content is None else content)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(
            f"config {path}: {where}: {first['msg']}; known settings: {', '.join(ExportConfig.model_fields)}"
        ) from None
    return config.override(weights=path.parent / config.weights) if config.weights else config
