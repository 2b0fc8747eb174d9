"""Export settings: of a YAML file, overridden by the command line, completed by a preset."""

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
        raise ModelError(f"layers {text!r}: expected A-B with A <= B, e.g. 2-9, or one number")
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
    """What ``visionad export`` may be told: a preset is one of these settings. ``None`` means the backbone's own default.

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
        """The same settings, but for every option that is not ``None``."""
        return ExportConfig(**{**self.model_dump(), **{k: v for k, v in options.items() if v is not None}})

    def resolved(self) -> ExportConfig:
        """Return the same with the preset's settings where nothing else is said.

        Raises:
            ModelError: no or unknown backbone.
            VisionADError: unknown or faulty preset.
        """
        if self.backbone is None:
            raise ModelError("say which backbone: --backbone NAME, or a --config that names one")
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
        """Return the keyword arguments of :func:`~visionad_export.exporter.export_model`, the backbone apart.

        Raises:
            VisionADError: layers or scoring that cannot be.
        """
        plain = self.model_dump(include={"weights", "resize", "crop", "class_token", "precision"}, exclude_none=True)
        if self.layers is not None:
            plain["layers"] = parse_layers(self.layers)
        return {**plain, "scoring": self.scoring()}

    def scoring(self) -> ScoringSpec:
        """Return how the model is to score.

        Raises:
            VisionADError: unknown views, or a fraction that is none.
        """
        return ScoringSpec(
            views=PAPER.views if self.views is None else self.views,  # type: ignore[arg-type]  # checked there
            top_fraction=PAPER.top_fraction if self.top_fraction is None else self.top_fraction,
            self_similarity=PAPER.self_similarity if self.self_similarity is None else self.self_similarity,
        )


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
