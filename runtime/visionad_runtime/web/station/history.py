"""Parts of the records, read by the page process itself: SQLite in WAL mode lets another process read."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ...station.records.image_names import by_camera
from ...station.records.records import NEWEST_REVIEW, deciding_camera
from ...station.records.statistics import MISSED, missed_in

PAGE = 100
"""Parts of one page."""
CSV_ROWS = 200
"""Parts that an export holds in memory at a time."""
_EVALUATIONS = {"ok": 1, "reject": 2, "undecided": 3}
_COLUMNS = (
    "id, time_utc, sequence, part, recipe, evaluation, reason, latency_ms, bank_version, score, threshold, simulated, "
    f"alarms, cameras, archived, late, {NEWEST_REVIEW} AS was_good"
)


class Filter(NamedTuple):
    """Which parts.

    Attributes:
        before: only smaller numbers; 0 for all.
        verdict: ``ok``, ``reject``, ``undecided``, ``not_ok``, or empty.
        recipe: number; 0 for all.
        part: text that the part's text begins with.
        start: UTC, ISO 8601, included.
        end: not included.
        review: ``none``, ``good``, ``bad``, or empty.
    """

    before: int = 0
    verdict: str = ""
    recipe: int = 0
    part: str = ""
    start: str = ""
    end: str = ""
    review: str = ""


class History:
    """Reads the records. Each call opens the database: it is short, and the front may replace the file.

    Args:
        path: of the records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._uri = f"{path.resolve().as_uri()}?mode=ro"

    def counts(self, start_utc: str) -> dict[str, int]:
        """Return parts by evaluation since a time, and how many were late or missed, as the statistics count them."""
        rows = self._rows(
            "SELECT evaluation, count(*) AS n, count(late) AS late FROM parts WHERE time_utc >= ? AND delivery IS NOT NULL "
            "GROUP BY evaluation",
            (start_utc,),
        )
        found = {row["evaluation"]: row["n"] for row in rows}
        marks = ",".join("?" * len(MISSED))
        events = self._rows(
            f"SELECT code, text FROM events WHERE time_utc >= ? AND code IN ({marks})", (start_utc, *MISSED)
        )
        counts = {name: found.get(number, 0) for name, number in _EVALUATIONS.items()}
        return {**counts, "late": sum(row["late"] for row in rows), "missed": missed_in([dict(one) for one in events])}

    def newest(self, start_utc: str, limit: int) -> list[dict[str, Any]]:
        """Return the newest parts since a time, oldest first: number, text, time, evaluation, reason, score, threshold."""
        rows = self._rows(
            "SELECT id, part, time_utc AS at, evaluation, reason, score, threshold FROM parts "
            "WHERE time_utc >= ? AND delivery IS NOT NULL ORDER BY id DESC LIMIT ?",
            (start_utc, limit),
        )
        return [dict(row) for row in reversed(rows)]

    def page(self, wanted: Filter) -> dict[str, Any]:
        """Return a page of parts, newest first, and how many there are."""
        where, values = _condition(wanted)
        total = self._rows(f"SELECT count(*) AS n FROM parts WHERE {where}", values)[0]["n"]
        if wanted.before:
            where, values = f"{where} AND id < ?", (*values, wanted.before)
        rows = self._rows(f"SELECT {_COLUMNS} FROM parts WHERE {where} ORDER BY id DESC LIMIT {PAGE + 1}", values)
        records = [_record(row) for row in rows[:PAGE]]
        kept = self._rows("SELECT count(*) AS n FROM (SELECT 1 FROM parts WHERE delivery IS NOT NULL LIMIT 1)", ())[0][
            "n"
        ]
        return {"records": records, "total": total, "more": len(rows) > PAGE, "empty": kept == 0}

    def one(self, part: int) -> dict[str, Any] | None:
        """Return a part with everything that is recorded of it; ``None`` if there is no such part."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM parts WHERE id = ? AND delivery IS NOT NULL", (part,))
        if not rows:
            return None
        reviews = self._rows("SELECT who, was_good, time_utc, note FROM reviews WHERE part = ? ORDER BY id", (part,))
        row = rows[0]
        archived = by_camera(json.loads(row["archived"] or "[]"))
        return {
            **_record(row),
            "cameras": json.loads(row["cameras"]),
            "archived": list(archived.values()),
            "archived_cameras": list(archived),
            "reviews": [{**dict(one), "was_good": bool(one["was_good"])} for one in reviews],
        }

    def csv(self, wanted: Filter, separator: str) -> Iterator[bytes]:
        """Yield parts as CSV, oldest first, some at a time: UTF-8 with BOM. No cell is a formula.

        Args:
            wanted: which parts.
            separator: of cells; with ``;``, numbers have a decimal comma.
        """
        names = (
            "id", "time_utc", "sequence", "part", "recipe", "evaluation", "reason", "class", "score", "threshold", "latency_ms",
            "bank_version", "was_good", "simulated",
        )  # fmt: skip
        yield b"\xef\xbb\xbf" + _line(names, separator)
        where, values = _condition(wanted)
        last = 0
        query = f"SELECT {_COLUMNS} FROM parts WHERE {where} AND id > ? ORDER BY id LIMIT {CSV_ROWS}"
        while rows := self._rows(query, (*values, last)):
            records = [_record(row) for row in rows]
            yield b"".join(_line([record[name] for name in names], separator) for record in records)
            last = rows[-1]["id"]

    def audit(self, before: int, limit: int = PAGE) -> list[dict[str, Any]]:
        """Return rows of the audit, newest first."""
        rows = self._rows(
            "SELECT id, time_utc, who, what, old, new FROM audit WHERE ? = 0 OR id < ? ORDER BY id DESC LIMIT ?",
            (before, before, limit),
        )
        return [{**dict(row), "old": json.loads(row["old"]), "new": json.loads(row["new"])} for row in rows]

    def _rows(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self._uri, uri=True, timeout=5)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(query, tuple(values)).fetchall()


def _condition(wanted: Filter) -> tuple[str, tuple[Any, ...]]:
    terms: list[str] = ["delivery IS NOT NULL"]
    values: list[Any] = []

    def add(term: str, *given: Any) -> None:
        terms.append(term)
        values.extend(given)

    if wanted.verdict == "not_ok":
        add("evaluation != 1")
    elif wanted.verdict:
        add("evaluation = ?", _EVALUATIONS[wanted.verdict])
    if wanted.recipe:
        add("recipe = ?", wanted.recipe)
    if wanted.part:
        add("part >= ? AND part < ?", wanted.part, wanted.part + "\U0010ffff")  # a prefix, without LIKE's signs
    if wanted.start:
        add("time_utc >= ?", wanted.start)
    if wanted.end:
        add("time_utc < ?", wanted.end)
    if wanted.review == "none":
        add(f"{NEWEST_REVIEW} IS NULL")
    elif wanted.review:
        add(f"{NEWEST_REVIEW} = ?", int(wanted.review == "good"))
    return " AND ".join(terms), tuple(values)


def _record(row: sqlite3.Row) -> dict[str, Any]:
    cameras = json.loads(row["cameras"])
    name, facts = deciding_camera(cameras)
    return {
        "id": row["id"], "time_utc": row["time_utc"], "sequence": row["sequence"], "part": row["part"], "recipe": row["recipe"],
        "evaluation": row["evaluation"], "reason": row["reason"], "latency_ms": row["latency_ms"],
        "bank_version": row["bank_version"], "score": row["score"], "threshold": row["threshold"],
        "simulated": bool(row["simulated"]), "alarms": json.loads(row["alarms"]), "late": row["late"] is not None,
        "was_good": None if row["was_good"] is None else bool(row["was_good"]), "camera": name, "class": facts.get("class"),
        "kept": bool(row["archived"]),
    }  # fmt: skip


def _line(cells: Sequence[Any], separator: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\r\n").writerow([_cell(cell, separator) for cell in cells])
    return text.getvalue().encode()


def _cell(value: Any, separator: str) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and separator == ";":  # a German spreadsheet takes 12.5 for a day in May
        return str(value).replace(".", ",")
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value
