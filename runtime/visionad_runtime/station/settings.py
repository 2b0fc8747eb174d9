"""The station file: one YAML, checked whole before anything starts, with file and line of each mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import VisionADError
from .camera import CAMERAS, Camera, PushedCamera
from .leaf import LeafRegistry, LeafSettings
from .sink import SINKS, Sink
from .yaml_places import Places, read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CodeReading(_Part):
    """A code in the image that must be the part's.

    Attributes:
        kind: of the code.
        camera: whose images hold it; any camera's without it.
        must: ``match``: equal to the line's part text; ``be_read``: readable.
    """

    kind: Literal["datamatrix", "qr", "code128", "ean13", "any"] = "any"
    camera: str | None = None
    must: Literal["match", "be_read"] = "match"


class Alignment(_Part):
    """Where a part must lie: as in the first enrolled image of its class that the bank keeps.

    Attributes:
        min_correlation: lowest correlation of the two images once they are aligned; below it is another part, or none.
        max_shift_px: how far the middle may have moved, in pixels of the image.
        max_rotation_deg: how far the part may be turned, in degrees; of a round part no turn can be told: 180.
    """

    min_correlation: float = Field(default=0.8, gt=0, le=1)
    max_shift_px: float = Field(default=20, gt=0, le=1_000_000)
    max_rotation_deg: float = Field(default=5, gt=0, le=180)


class Recipe(_Part):
    """What is inspected of one product.

    Attributes:
        name: for people.
        class_name: class of the bank, ``class`` in the file; one for all cameras, or camera → class. Without it, images are routed.
        cameras: cameras that are used; all of the station without it.
        bank_version: pinned version of the bank; the newest, and newer ones as they come, without it.
        deadline_ms: overrides the station's.
        combine: ``worst``: the part is anomalous if one camera says so.
        code: code reading.
        alignment: where its parts must lie, instead of what ``checks.alignment`` says.
    """

    name: str = Field(min_length=1, max_length=100)
    class_name: str | dict[str, str] | None = Field(default=None, alias="class")
    cameras: tuple[str, ...] | None = None
    bank_version: int | None = Field(default=None, ge=1)
    deadline_ms: float | None = Field(default=None, gt=0, le=3_600_000)
    combine: Literal["worst"] = "worst"
    code: CodeReading | None = None
    alignment: Alignment | None = None

    def digest(self) -> str:
        """Return the sha256 of the recipe's settings, which every result carries."""
        unset = {"alignment"} if self.alignment is None else None  # as before there was this key
        facts = self.model_dump(mode="json", by_alias=True, exclude=unset)
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def class_of(self, camera: str) -> str | None:
        """Return the class of a camera's images; ``None`` to route them."""
        return self.class_name.get(camera) if isinstance(self.class_name, dict) else self.class_name


class GoldenParts(_Part):
    """Known parts that are inspected to prove the station.

    Attributes:
        folder: images ``good/*`` and ``bad/*``, or those of a recipe in ``NUMBER/good/*`` and ``NUMBER/bad/*``.
        due: when they are due: at the start of a shift, after a change of the recipe, after a start of the station.
        overdue: while they are due, ``not_ready``: no trigger is accepted; ``alarm``: the station goes on.
    """

    folder: Path
    due: tuple[Literal["shift", "recipe", "restart"], ...] = ("shift", "restart")
    overdue: Literal["not_ready", "alarm"] = "alarm"


class Checks(_Part):
    """Checks beside the verdict.

    Attributes:
        light: ``off``, ``alarm``, or ``fault_after_N``: an image whose light is not that of the enrolled images is not decidable.
        rejects_in_a_row: number of parts in a row that are not ok, from which an alarm is raised; 0 for never.
        golden: golden parts.
        alignment: where parts must lie; a part elsewhere is not decidable. Not looked at without it.
    """

    light: str = Field(default="alarm", pattern=r"^(off|alarm|fault_after_[1-9]\d{0,3})$")
    rejects_in_a_row: int = Field(default=5, ge=0, le=1_000_000)
    golden: GoldenParts | None = None
    alignment: Alignment | None = None


class Shifts(_Part):
    """Shifts, in a named time zone.

    Attributes:
        zone: name in the IANA time zone database, such as ``Europe/Berlin``.
        start: local times of the starts, in order.
    """

    zone: str = "UTC"
    start: tuple[Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")], ...] = ("06:00", "14:00", "22:00")

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ValueError, OSError, KeyError):
            raise ValueError(f"unknown time zone {zone!r}; expected a name such as Europe/Berlin") from None
        return zone

    @field_validator("start")
    @classmethod
    def _ordered(cls, start: tuple[str, ...]) -> tuple[str, ...]:
        if not start or list(start) != sorted(set(start)):
            raise ValueError(f"expected one or more times, each once and in order, got {', '.join(start) or 'none'}")
        return start


class KeepRule(_Part):
    """Which images are archived: ``all``, ``none`` or ``1 of N``.

    Attributes:
        not_ok: of parts that are not ok.
        ok: of ok parts.
    """

    not_ok: str = Field(default="all", pattern=r"^(all|none|1 of [1-9]\d*)$")
    ok: str = Field(default="1 of 200", pattern=r"^(all|none|1 of [1-9]\d*)$")


class Archive(_Part):
    """Images on disk. They are deleted, oldest first and ok ones first, when any limit is reached.

    Attributes:
        folder: where they lie, below a folder for each day.
        keep: which images are archived.
        days: largest age.
        max_gb: largest size of all, in 10^9 bytes.
        min_free_gb: space that stays free on the disk, in 10^9 bytes.
    """

    folder: Path
    keep: KeepRule = KeepRule()
    days: float = Field(default=30, gt=0, le=36500)
    max_gb: float = Field(default=100, gt=0, le=1_000_000)
    min_free_gb: float = Field(default=5, ge=0, le=1_000_000)


class Web(_Part):
    """HTTP server of the station.

    Attributes:
        host: address to listen at.
        port: port.
        allow_hosts: names in the Host header that are answered beside the address itself.
        allow_origins: origins of pages that may call it.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()


class StationSettings(_Part):
    """The station file.

    Attributes:
        station: name in messages, topics and records.
        model: model folder, from ``visionad export``.
        bank: bank folder, from ``visionad bank add``.
        backend: ``auto``, or a backend that ``visionad doctor`` lists.
        precision: compute in ``fp32``, ``bf16`` or ``fp16``; the model's without it.
        preset: scoring; the model's without it.
        threads: CPU threads of the engine; all cores without it.
        deadline_ms: from the trigger to the result; a later result is not decidable.
        ack_ms: how long a result waits for its acknowledgement before the station is ready again.
        trigger: ``line``: a sink triggers; ``hardware``: the camera is triggered from outside; ``free``: each frame is inspected.
        skew_ms: by how much the frames of one part may be apart, for ``trigger`` ``free`` and ``hardware`` with several cameras.
        cameras: name → settings of the camera, by its ``kind``.
        recipes: number → recipe.
        checks: checks beside the verdict.
        shifts: shifts of the statistics.
        sinks: ways out of the station, each by its ``kind``.
        archive: images on disk; none without it.
        records: SQLite file of parts, events and audit.
        log: file of the log, of bounded size; stdout without it. The worker's has ``-worker`` in its name.
        retention_days: age at which parts and events are deleted; never without it.
        web: HTTP server; none without it.
    """

    station: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    model: Path
    bank: Path
    backend: str = "auto"
    precision: str | None = None
    preset: str | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    deadline_ms: float = Field(default=500, gt=0, le=3_600_000)
    ack_ms: float = Field(default=2000, gt=0, le=3_600_000)
    trigger: Literal["line", "hardware", "free"] = "line"
    skew_ms: float = Field(default=50, gt=0, le=3_600_000)
    cameras: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$")], dict[str, Any]] = Field(
        min_length=1
    )
    recipes: dict[Annotated[int, Field(ge=1, le=65535)], Recipe] = Field(min_length=1)
    checks: Checks = Checks()
    shifts: Shifts = Shifts()
    sinks: tuple[dict[str, Any], ...] = ()
    archive: Archive | None = None
    records: Path = Path("records.sqlite")
    log: Path | None = None
    retention_days: float | None = Field(default=None, gt=0, le=36500)
    web: Web | None = None

    @model_validator(mode="after")
    def _named(self) -> StationSettings:
        for number, recipe in self.recipes.items():
            if recipe.cameras == ():
                raise ValueError(f"recipe {number}: expected one camera or more")
            used = set(self.cameras if recipe.cameras is None else recipe.cameras)
            named = set(recipe.class_name) if isinstance(recipe.class_name, dict) else set()
            if recipe.code is not None and recipe.code.camera is not None:
                named.add(recipe.code.camera)
            for camera in sorted((used | named) - set(self.cameras)):
                raise ValueError(
                    f"recipe {number} names camera {camera!r}; the station has {', '.join(sorted(self.cameras))}"
                )
            for camera in sorted(named - used):
                raise ValueError(
                    f"recipe {number} names camera {camera!r}, which it does not use; its cameras are {', '.join(sorted(used))}"
                )
        return self


class StationFileError(VisionADError):
    """Mistakes in a station file.

    Attributes:
        problems: one line for each, with file and line number.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class Station:
    """A station file with its leaves.

    Attributes:
        path: of the file; relative paths in it are relative to its folder.
        settings: what it says.
        cameras: name → camera, not open.
        sinks: name → sink, not running.
    """

    def __init__(
        self, path: Path, settings: StationSettings, cameras: Mapping[str, Camera], sinks: Mapping[str, Sink]
    ) -> None:
        self.path, self.settings, self.cameras, self.sinks = path, settings, cameras, sinks


def read_settings(path: Path) -> StationSettings:
    """Read a station file without its cameras and sinks: what they say is not checked, and nothing of them is imported.

    Args:
        path: YAML file.

    Raises:
        VisionADError: It cannot be read.
        StationFileError: It has mistakes.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[StationSettings, Places]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise VisionADError(
            f"station file {path} cannot be read: {why}; `visionad station init {path}` writes one"
        ) from None
    node, raw = read_yaml(path, text)
    if node is None or not isinstance(raw, dict):
        raise VisionADError(
            f"{path}: expected keys such as station, model, bank and cameras; `visionad station init` writes a file"
        )
    places = Places(path, node)
    try:
        settings = StationSettings.model_validate(raw)
    except ValidationError as exc:
        raise StationFileError([places.describe(error, StationSettings) for error in exc.errors()]) from None
    problems = places.numbers(raw, settings)
    if len(settings.recipes) < len(raw["recipes"]):
        keys = ", ".join(repr(key) for key in raw["recipes"])
        problems.append(f"{places.at(('recipes',))}: recipes: expected each number once, got {keys}")
    if problems:
        raise StationFileError(problems)
    return _resolve(settings, path.parent), places


def read_station(path: Path, *, simulate: bool = False) -> Station:
    """Read and check a station file.

    Args:
        path: YAML file.
        simulate: whether folder cameras replace all others: those with a ``simulate`` key keep that folder.

    Raises:
        VisionADError: It cannot be read.
        StationFileError: It has mistakes.
    """
    settings, places = _read(path)
    problems: list[str] = []
    cameras = {}
    for name, facts in settings.cameras.items():
        given = _simulated(facts, simulate)
        leaf = _leaf(CAMERAS, name, given, places, ("cameras", name), path.parent, problems)
        if leaf is not None:
            cameras[name] = leaf
        if isinstance(leaf, PushedCamera) and settings.web is None:
            problems.append(
                f"{places.at(('cameras', name))}: cameras.{name}: its images come to the page's address; "
                "add a page, such as `web: {port: 8000}`"
            )
    sinks = {}
    for index, facts in enumerate(settings.sinks):
        name = str(facts.get("kind", "sink"))
        name = name if name not in sinks else f"{name}-{index + 1}"
        leaf = _leaf(SINKS, name, facts, places, ("sinks", index), path.parent, problems)
        if leaf is not None:
            sinks[name] = leaf
    if problems:
        raise StationFileError(problems)
    return Station(path, settings, cameras, sinks)


def _simulated(facts: Mapping[str, Any], simulate: bool) -> dict[str, Any]:
    """Return a camera's settings, or those of the folder that simulates it."""
    own = {key: value for key, value in facts.items() if key != "simulate"}
    if not simulate or own.get("kind") == "folder":
        return own
    folder = facts.get("simulate")
    return {"kind": "folder", "path": folder} if folder else own


def _leaf(
    registry: LeafRegistry[Any],
    name: str,
    facts: Mapping[str, Any],
    places: Places,
    where: tuple[str | int, ...],
    base: Path,
    problems: list[str],
) -> Any:
    try:
        kind = facts.get("kind")
        if not isinstance(kind, str):
            raise VisionADError(f"expected a kind, one of {', '.join(registry.kinds())}")
        leaf = registry.load(kind)
        given = _absolute(leaf.Settings, facts, base)
        settings = leaf.Settings.model_validate(given)
        problems += places.numbers(given, settings, where)
        return leaf(name, settings)
    except ValidationError as exc:
        problems += [places.describe(error, leaf.Settings, where) for error in exc.errors()]
    except VisionADError as exc:
        problems.append(f"{places.at((*where, 'kind'))}: {'.'.join(map(str, where))}: {exc}")
    return None


def _absolute(model: type[LeafSettings], facts: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return settings with relative paths made relative to the station file."""
    result = dict(facts)
    for name, field in model.model_fields.items():
        if field.annotation in (Path, Path | None) and isinstance(result.get(name), str):
            result[name] = base / result[name]
    return result


def _resolve(settings: StationSettings, base: Path) -> StationSettings:
    golden = settings.checks.golden
    checks = settings.checks
    if golden is not None:
        golden = golden.model_copy(update={"folder": base / golden.folder})
        checks = checks.model_copy(update={"golden": golden})
    archive = settings.archive
    if archive is not None:
        archive = archive.model_copy(update={"folder": base / archive.folder})
    update = {"model": base / settings.model, "bank": base / settings.bank, "records": base / settings.records}
    if settings.log is not None:
        update["log"] = base / settings.log
    return settings.model_copy(update={**update, "checks": checks, "archive": archive})
