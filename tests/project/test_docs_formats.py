"""The fields on the page of the formats are those of the manifests, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel
from visionad_runtime.bank.folder import FOLDERS
from visionad_runtime.formats.manifest import (
    Accuracy,
    BankManifest,
    ByHand,
    Calibration,
    ClassEntry,
    Confirmation,
    FeatureIdentity,
    KnownDefect,
    ModelManifest,
    PreprocessSpec,
    SupportImage,
    WeightsRecord,
)
from visionad_runtime.formats.roi import Roi, RoiSpec

from tests.data import ROOT

TEXT = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
TABLES: dict[str, type[BaseModel]] = {
    "field of a model manifest": ModelManifest,
    "field of `identity`": FeatureIdentity,
    "field of a bank manifest": BankManifest,
    "field of a class entry": ClassEntry,
    "field of a support": SupportImage,
    "field of a calibration": Calibration,
    "field of a confirmation": Confirmation,
    "field of `roi`": RoiSpec,
    "field of a defect": KnownDefect,
}
"""Heading of a table → the model whose fields its first column names."""
INNER: dict[tuple[str, str], type[BaseModel]] = {
    ("field of a model manifest", "weights"): WeightsRecord,
    ("field of a model manifest", "accuracy"): Accuracy,
    ("field of `identity`", "preprocess"): PreprocessSpec,
    ("field of a calibration", "by_hand"): ByHand,
    ("field of `roi`", "rois"): Roi,
}
"""Heading and row of a table → the model whose fields the row's meaning names."""


def named(cell: str) -> list[str]:
    return re.findall(r"`([a-z_0-9]+)`", cell)


def rows(heading: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names in both cells of each row of a table."""
    match = re.search(rf"^\| {re.escape(heading)} \| meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert match is not None, f"no table {heading!r}"
    for line in match[1].splitlines():
        first, second = line.strip("|").split("|", 1)
        yield named(first), named(second)


def models_in(annotation: object) -> set[type[BaseModel]]:
    """Return the models that a type holds, and those that they hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(models_in(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*(models_in(part) for part in get_args(annotation)))


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_has_the_fields_of_its_model(heading: str) -> None:
    names = [name for first, _ in rows(heading) for name in first]
    assert sorted(names) == sorted(TABLES[heading].model_fields)


@pytest.mark.parametrize(("heading", "row"), INNER)
def test_a_row_names_the_fields_of_its_model(heading: str, row: str) -> None:
    names = next(second for first, second in rows(heading) if first == [row])
    assert set(names) == set(INNER[heading, row].model_fields)


def test_no_model_is_left_out() -> None:
    assert models_in(ModelManifest) | models_in(BankManifest) == {*TABLES.values(), *INNER.values()}


def test_the_schema_versions_and_folders_are_those_of_the_code() -> None:
    for model in (ModelManifest, BankManifest):
        fields = model.model_fields
        row = f'| `format`, `schema_version` | `"{fields["format"].default}"`, {fields["schema_version"].default} |'
        assert row in TEXT
    section = TEXT.split("## Bank folder\n")[1].split("\n## ")[0].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)/", section, re.MULTILINE)) == set(FOLDERS)
