"""What the service answers: the schemas of ``/openapi.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Evidence(BaseModel):
    """The good patch that is nearest to a region's hottest cell."""

    support: str = Field(description="sha256 of the support")
    source: str
    bbox: tuple[int, int, int, int] | None = Field(
        description="x, y, width and height, pixels of the support; null: its size is not known"
    )
    pose: str
    distance: float


class Region(BaseModel):
    """A connected area of the image that stands out."""

    bbox: tuple[int, int, int, int] = Field(description="x, y, width and height, pixels of the image that was sent")
    score: float
    polygon: list[tuple[int, int]] = Field(description="outline: x and y, pixels of the image that was sent")
    roi: str = Field(default="image", description="region of interest that it lies in; `image` for a class without any")
    evidence: Evidence | None = Field(description="null: the service was started without --evidence")


class Promise(BaseModel):
    """What the thresholds promise about good parts."""

    max_false_reject: float = Field(description="tolerated rate of good parts that are anomalous")
    review_rate: float = Field(description="tolerated rate of good parts that are not ok")
    guaranteed: float = Field(
        description="rate of good parts that are anomalous, at most, on average over calibrations"
    )
    normals: int = Field(description="number of good scores that the promise rests on")
    void: bool = Field(description="whether today's good parts are not like those of the calibration")


class Inspection(BaseModel):
    """The object that ``visionad predict --json`` prints for an image."""

    model_config = ConfigDict(populate_by_name=True)

    image: str = Field(description="the parameter `name`, or the form's file name")
    class_name: str | None = Field(alias="class", description="null: the image is like no class")
    class_source: Literal["given", "routed", "unknown"]
    class_margin: float | None
    score: float
    threshold: float | None = Field(description="null: the class is not calibrated, or was with other settings")
    verdict: Literal["ok", "review", "anomalous", "unknown"]
    p_value: float | None = Field(description="share of good parts that score at least as high")
    promise: Promise | None = Field(description="null: the class has no threshold that holds here, or one by hand")
    class_mismatch: str | None = Field(description="another class that the image is nearer to than to the one given")
    bank_version: int
    bank: str = Field(description="sha256 of the bank's content")
    model: str = Field(description="sha256 of the model's content")
    regions: list[Region]
    timings_ms: dict[str, float]
    backend: str
    precision: str


class Enrolled(BaseModel):
    """A good part was enrolled."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: str = Field(alias="class")
    bank_version: int


class ClassFacts(BaseModel):
    """What is enrolled in a class."""

    shots: int
    threshold: float | None


class Classes(BaseModel):
    """What is enrolled, by class."""

    bank_version: int
    classes: dict[str, ClassFacts]


class Health(BaseModel):
    """Whether images can be inspected."""

    ready: bool = Field(description="true with status 200, false with 503")
    version: str
    model: str
    backend: str
    bank_version: int
    model_digest: str = Field(description="sha256 of the model's content, as `model` of a result")
    bank_digest: str = Field(description="sha256 of the content of the bank in force, as `bank` of a result")
    waiting: int = Field(description="images that wait or are inspected")
    notes: list[str]


class Error(BaseModel):
    """Why a request got no result."""

    error: str = Field(description="one line")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the statuses that an endpoint may answer with, and those of every endpoint."""
    meaning = {
        400: "the image, a parameter or the request is invalid",
        403: "the host or origin is not allowed, or enrollment is disabled",
        408: "the image was not complete in time",
        409: "the class or image does not exist, or exists already",
        413: "the image is too large",
        500: "the service failed",
        503: "too many images wait, or the service stops",
    }
    return {
        status: {"model": Error, "description": meaning[status]} for status in sorted({400, 403, 500, 503, *statuses})
    }
