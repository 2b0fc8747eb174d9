"""What the page's API takes and answers: the schemas of ``/openapi.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_NUMBER = 2**63 - 1
"""Largest number of a part: SQLite has none above."""


class Body(BaseModel):
    """Body of a command. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one line, in English")
    code: str = Field(description="word for programs; pages translate it")
    values: dict[str, Any] = Field(description="fill the page's sentence")


MEANINGS = {
    400: "the image, a value or the request is invalid",
    401: "nobody is logged in, or name or password are wrong",
    403: "the role may not, or host, origin or sender are not allowed",
    404: "there is no such thing",
    408: "the image was not complete in time",
    409: "the station's state does not allow it",
    412: "somebody else has changed it meanwhile",
    413: "the image is too large",
    423: "the PLC has control, or the cameras start the cycle",
    429: "tried too often",
    500: "the page or the station failed",
    503: "the station does not answer, or is not ready for it",
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the statuses that an endpoint may answer with, and those of every endpoint."""
    return {
        status: {"model": Problem, "description": MEANINGS[status]}
        for status in sorted({400, 403, 500, 503, *statuses})
    }


class Login(Body):
    """Either ``panel``; or ``name`` and ``password``, with ``code`` for the first user."""

    name: str = Field(default="", max_length=100)
    password: str = Field(default="", max_length=1000)
    code: str = Field(default="", max_length=100, description="printed by the station while it has no user")
    panel: str = Field(
        default="", max_length=200, description="from the file panel-token beside the records; good once"
    )


class SessionFacts(BaseModel):
    """Who is logged in."""

    name: str
    role: Literal["operator", "viewer", "setter", "admin"]
    panel: bool


class Seen(Body):
    """Up to which part a person has seen what was not ok."""

    id: int = Field(ge=0)


class RecipeChoice(Body):
    """A recipe to prepare."""

    number: int = Field(ge=1, le=65535)


class ControlChoice(Body):
    """Who gets control."""

    to: Literal["line", "page"]


class TriggerPart(Body):
    """A part to inspect."""

    part: str = Field(default="", max_length=100)


class Review(Body):
    """What a person says of a part."""

    good: bool
    note: str = Field(default="", max_length=500)


class Nothing(Body):
    """No values."""


class NewUser(Body):
    """A user to add, or one who gets another password or role."""

    name: str = Field(max_length=60)
    password: str = Field(max_length=1000)
    role: Literal["operator", "viewer", "setter", "admin"]


class User(BaseModel):
    """A user."""

    name: str
    role: str


class UserList(BaseModel):
    """All users."""

    users: list[User]


class Done(BaseModel):
    """What was done; its keys depend on the command."""

    model_config = ConfigDict(extra="allow")


class Record(BaseModel):
    """A part."""

    model_config = ConfigDict(populate_by_name=True)

    id: int
    time_utc: str
    sequence: int
    part: str
    recipe: int
    evaluation: int = Field(description="1 ok, 2 anomalous, 3 not decidable")
    reason: str
    latency_ms: float | None
    bank_version: int | None
    score: float | None
    threshold: float | None
    simulated: bool
    alarms: list[str]
    late: bool
    was_good: bool | None = Field(description="newest review; null: not reviewed")
    camera: str
    class_name: str | None = Field(alias="class")
    kept: bool = Field(description="whether its images are in the archive")


class RecordPage(BaseModel):
    """Parts, newest first."""

    records: list[Record]
    total: int = Field(description="parts that fit the filter")
    more: bool = Field(description="whether there are older ones")
    empty: bool = Field(description="whether there is no part at all")


class ReviewRow(BaseModel):
    """A review."""

    who: str
    was_good: bool
    time_utc: str
    note: str


class FullRecord(Record):
    """A part with everything that is recorded of it."""

    cameras: dict[str, Any] = Field(description="camera: the object of `predict --json`, or an error")
    archived: list[str] = Field(description="names of its images in the archive")
    archived_cameras: list[str] = Field(description="the camera of each")
    reviews: list[ReviewRow]


class Statistics(BaseModel):
    """Statistics of shifts: the object of `visionad report --json`."""

    model_config = ConfigDict(populate_by_name=True)

    station: str
    zone: str
    start: str = Field(alias="from")
    to: str
    recipes: dict[str, str] = Field(description="number: name")
    shifts: list[dict[str, Any]]


class AuditEntry(BaseModel):
    """A change."""

    id: int
    time_utc: str
    who: str
    what: str
    old: Any
    new: Any


class AuditPage(BaseModel):
    """Changes, newest first, and what is wrong with the chain."""

    entries: list[AuditEntry]
    problems: list[str]


class StationHealth(BaseModel):
    """Health of the station. Without a session, only the first two keys."""

    model_config = ConfigDict(extra="allow")

    ready: bool = Field(description="true with status 200, false with 503")
    phase: str


class DiagnosisStep(BaseModel):
    """A step from the package to an image or a delivered result."""

    step: Literal["installed", "found", "settings", "image", "connected", "delivered"]
    ok: bool | None = Field(description="null: not known, because an earlier step fails or nothing was tried yet")
    detail: str


class Diagnosis(BaseModel):
    """The steps of each camera and each way out, by name."""

    cameras: dict[str, list[DiagnosisStep]]
    sinks: dict[str, list[DiagnosisStep]]


class OfVersion(Body):
    """The version of a draft, as it was seen; if it is another by now, nothing is done (412)."""

    version: int = Field(ge=1)


class SeenPart(OfVersion):
    """An image that was seen: that of a part of the line, from memory or the archive, or a live frame."""

    record: int | None = Field(default=None, ge=1, le=MAX_NUMBER, description="number of the part")
    camera: str = Field(default="", max_length=100, description="of the part")
    frame: int | None = Field(default=None, ge=1, description="number of the live frame, as its event has it")

    @model_validator(mode="after")
    def _one(self) -> SeenPart:
        if (self.record is None) == (self.frame is None):
            raise ValueError("expected record or frame, one of them")
        return self


class Reason(OfVersion):
    """Why a part that stands out is good."""

    reason: str = Field(min_length=1, max_length=500)


class Collecting(OfVersion):
    """Whether the line's parts are collected."""

    on: bool


class Looked(OfVersion):
    """That a collected part was looked at, and whether it is struck out."""

    strike: bool = False
    reason: str = Field(default="", max_length=500)


class WantedRate(OfVersion):
    """The tolerated rate of good parts that are rejected."""

    max_false_reject: float = Field(gt=0, lt=1, allow_inf_nan=False)


class TypedThreshold(OfVersion):
    """A threshold that a person types. It promises nothing."""

    value: float = Field(gt=0, allow_inf_nan=False, description="scores above it are anomalous")
    reason: str = Field(min_length=1, max_length=500)


Pixel = Annotated[int, Field(ge=-(2**30), le=2**30)]
"""A corner may lie beyond the image."""


class Region(Body):
    """A region of interest: a box or a polygon, in pixels, and the tiles that it is cut into."""

    name: str
    box: tuple[int, int, int, int] | None = Field(default=None, description="x, y, width, height")
    polygon: list[tuple[int, int]] | None = None
    grid: tuple[int, int] = Field(default=(1, 1), description="rows and columns")
    overlap: float = Field(default=0.2, allow_inf_nan=False)


class RegionSpec(Body):
    """What is inspected of images of a size."""

    image_size: tuple[int, int]
    rois: list[Region] = Field(default_factory=list, max_length=20)
    ignore: list[list[tuple[Pixel, Pixel]]] = Field(default_factory=list, max_length=100)
    mask: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="sha256 of the mask that the class has"
    )


class Regions(Body):
    """Regions; null for all of the image."""

    regions: RegionSpec | None


class NewRegions(Regions):
    """Regions for a draft."""

    version: int = Field(ge=1)


class Raster(BaseModel):
    """The patches that regions leave to be scored."""

    tiles: list[dict[str, Any]]
    cells: int
    inspected: int
    share: float = Field(description="of the image's area that is inspected")
    digest: str
    hidden: list[dict[str, Any]] = Field(description="parts called bad whose worst place would not be inspected")


class Replay(BaseModel):
    """What a part's replay found: camera, and whether all bits are the same; else the stage, what was expected and what was got."""

    cameras: dict[str, dict[str, Any]]


class Logs(BaseModel):
    """The newest lines of each log file; none if the station logs to the terminal."""

    logs: dict[str, list[str]]


class DraftList(BaseModel):
    """All drafts, and the classes of the bank in force."""

    drafts: list[dict[str, Any]]
    classes: dict[str, int]


class DraftFacts(BaseModel):
    """A draft, or what became of it."""

    model_config = ConfigDict(extra="allow")

    version: int = 0


class VersionPage(BaseModel):
    """Versions of the bank, newest first."""

    versions: list[dict[str, Any]]
    more: bool
    problems: list[str] = Field(description="versions that cannot be read")


class PushedFrame(BaseModel):
    """The image that a camera took."""

    camera: str
    frame: int = Field(description="its number, which counts up by one")
