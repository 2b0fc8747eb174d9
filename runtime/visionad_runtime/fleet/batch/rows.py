"""Rows of a batch run: what ``predict --json`` says of an image, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .. import parquet

BOX = pa.list_(pa.int32())
EVIDENCE = pa.struct(
    [
        ("support", pa.string()),
        ("source", pa.string()),
        ("bbox", BOX),
        ("pose", pa.string()),
        ("distance", pa.float64()),
    ]
)
REGION = pa.struct(
    [
        ("bbox", BOX),
        ("score", pa.float64()),
        ("polygon", pa.list_(pa.list_(pa.int32()))),
        ("roi", pa.string()),
        ("evidence", EVIDENCE),
    ]
)
PROMISE = pa.struct(
    [
        ("max_false_reject", pa.float64()),
        ("review_rate", pa.float64()),
        ("guaranteed", pa.float64()),
        ("normals", pa.int64()),
        ("void", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("image", pa.string()),
        ("class", pa.string()),
        ("class_source", pa.string()),
        ("class_margin", pa.float64()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("verdict", pa.string()),
        ("p_value", pa.float64()),
        ("promise", PROMISE),
        ("class_mismatch", pa.string()),
        ("bank_version", pa.int64()),
        ("bank", pa.string()),
        ("model", pa.string()),
        ("regions", pa.list_(REGION)),
        ("timings_ms", pa.map_(pa.string(), pa.float64())),
        ("backend", pa.string()),
        ("precision", pa.string()),
        ("error", pa.string()),
    ]
)
"""The columns. A row has an ``error`` or the others."""


def row_of(facts: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a row from the object of ``predict --json`` and the image's id."""
    row = {**facts, "id": number}
    if "timings_ms" in row:
        row["timings_ms"] = list(row["timings_ms"].items())
    return row


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of ``predict --json`` from a row: the inverse of :func:`row_of`."""
    if row["error"] is not None:
        return {"image": row["image"], "error": row["error"]}
    facts = {name: value for name, value in row.items() if name not in ("id", "error")}
    facts["timings_ms"] = dict(facts["timings_ms"] or ())
    return facts


def errors_of(part: bytes, count: int) -> int | None:
    """Return how many rows of a part file have an error, or ``None`` if it is not a whole part file of ``count`` rows."""
    try:
        column = parquet.read_parquet(part, ("error",))["error"]
    except (pa.ArrowException, KeyError, OSError, ValueError):
        return None
    return len(column) - int(column.null_count) if len(column) == count else None


def inspected(part: bytes) -> dict[int, dict[str, Any]]:
    """Return the rows of a part file that have no error, by the image's id; none of a file that is damaged."""
    try:
        table = parquet.read_parquet(part)
        rows = table.to_pylist() if table.schema.equals(SCHEMA) else []
    except (pa.ArrowException, OSError, ValueError):
        return {}
    return {row["id"]: row for row in rows if row["error"] is None}


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as a Parquet file, compressed with zstd."""
    return parquet.to_parquet(pa.Table.from_pylist(list(rows), schema=SCHEMA))
