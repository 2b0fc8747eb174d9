"""What the page's API takes and answers: the schemas of ``/openapi.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """Body of a command. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one line, in English")
    code: str = Field(description="word for programs; pages translate it")
    values: dict[str, Any] = Field(description="fill the page's sentence")


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


class PushedFrame(BaseModel):
    """The image that a camera took."""

    camera: str
    frame: int = Field(description="its number, which counts up by one")


class ClassCounts(BaseModel):
    """Classes of the bank in force, with their number of supports."""

    bank_version: int
    classes: dict[str, int]
