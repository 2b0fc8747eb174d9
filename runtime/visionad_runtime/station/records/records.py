"""Records: one row a part, events, and a hash-chained audit, in SQLite (WAL, FULL). Survives a kill and a power cut.

A row is inserted when a trigger is accepted and completed when its result is offered. So after a kill every acknowledged trigger
has its row, and one that was never completed is completed as not decidable. Stored sinks read completed rows by a cursor.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import VisionADError
from ...formats.plain_text import plain
from ..front.cycle import NOT_DECIDABLE, Job
from ..sink import Outcome
from .identity import note_identity
from .schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from .unusable import records_unusable

NEWEST_REVIEW = "(SELECT was_good FROM reviews WHERE part = parts.id ORDER BY reviews.id DESC LIMIT 1)"
GENESIS = "0" * 64
"""``previous`` of the first row of the audit."""


_RESULT = (
    "evaluation", "reason", "latency_ms", "bank_version", "score", "threshold", "simulated", "recipe_digest", "alarms", "cameras",
    "delivery",
)  # fmt: skip
_COMPLETE = (
    f"INSERT INTO parts (id, time_utc, sequence, part, recipe, {', '.join(_RESULT)}) "
    f"VALUES (?, ?, ?, ?, ?, {', '.join('?' * len(_RESULT))}) "
    f"ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name}=excluded.{name}' for name in _RESULT)}"
)


class AuditRow(NamedTuple):
    """One change of settings, bank, thresholds, users or verdicts."""

    id: int
    time_utc: str
    who: str
    what: str
    old: str
    new: str
    previous: str
    hash: str


class _Database(sqlite3.Connection):
    """A database that takes any text: one that it refused would keep all others from being written."""

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        return super().execute(sql, [plain(one) if isinstance(one, str) else one for one in parameters])


class Records:
    """The record database of a station. Any thread may call it; calls are serialized.

    Args:
        path: of the SQLite file.

    Raises:
        VisionADError: It cannot be opened, is damaged, or was written by a newer release.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=5, factory=_Database
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (sqlite3.Error, OSError) as exc:
            raise records_unusable(path, exc) from None

    def close(self) -> None:
        """Close the database. A second call does nothing."""
        with self._lock:
            self._db.close()

    # -- parts --------------------------------------------------------------------------------------------------------

    def last_id(self) -> int:
        """Return the largest number of a part; 0 without one."""
        with self._lock:
            return int(self._db.execute("SELECT coalesce(max(id), 0) FROM parts").fetchone()[0])

    def accept(self, job: Job, simulated: bool = False) -> None:
        """Note that a trigger was accepted.

        Args:
            job: the part.
            simulated: whether an image does not come from a lens.

        Raises:
            sqlite3.Error: It cannot be written, such as for a full disk.
        """
        with self._changing() as db:
            db.execute(
                "INSERT OR IGNORE INTO parts (id, time_utc, sequence, part, recipe, evaluation, reason, simulated) "
                "VALUES (?, ?, ?, ?, ?, 0, 'none', ?)",
                (job.id, job.time_utc, job.sequence, job.part, job.recipe, int(simulated)),
            )

    def complete(self, outcomes: Sequence[Outcome]) -> None:
        """Note results, and queue them for the stored sinks. A result that was noted before is left as it is.

        Raises:
            sqlite3.Error: They cannot be written.
        """
        with self._changing() as db:
            delivery = int(db.execute("SELECT coalesce(max(delivery), 0) FROM parts").fetchone()[0])
            for one in outcomes:
                known = db.execute("SELECT delivery FROM parts WHERE id = ?", (one.id,)).fetchone()
                if known is not None and known[0] is not None:
                    continue
                delivery += 1
                db.execute(
                    _COMPLETE,
                    (
                        one.id, one.time_utc, one.sequence, one.part, one.recipe, one.evaluation, one.reason, one.latency_ms,
                        one.bank_version, one.score, one.threshold, int(one.simulated), one.recipe_digest, _json(one.alarms),
                        _json(one.cameras), delivery,
                    ),
                )  # fmt: skip

    def add_late(self, outcome: Outcome) -> None:
        """Note a result that came after its deadline, beside the one that was offered."""
        with self._changing() as db:
            late = {"evaluation": outcome.evaluation, "latency_ms": outcome.latency_ms, "cameras": outcome.cameras}
            db.execute("UPDATE parts SET late = ? WHERE id = ?", (_json(late), outcome.id))

    def add_archived(self, part: int, paths: Sequence[str]) -> None:
        """Note where the images of a part lie."""
        with self._changing() as db:
            db.execute("UPDATE parts SET archived = ? WHERE id = ?", (_json(list(paths)), part))

    def finish_interrupted(self) -> int:
        """Complete parts that were accepted and never completed, as not decidable. Return how many."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM parts WHERE delivery IS NULL ORDER BY id").fetchall()
        self.complete(
            [
                Outcome(
                    row["id"], row["time_utc"], row["sequence"], row["part"], row["recipe"], NOT_DECIDABLE, "internal", None, None,
                    0.0, 0, {}, ("interrupted",), bool(row["simulated"]),
                )
                for row in rows
            ]
        )  # fmt: skip
        return len(rows)

    def parts(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Return completed parts with numbers above ``after``, oldest first."""
        return self._rows(
            "SELECT * FROM parts WHERE id > ? AND delivery IS NOT NULL ORDER BY id LIMIT ?", (after, limit)
        )

    def newest(self, limit: int = 50, where: str = "", values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the newest completed parts, newest first."""
        condition = f"AND ({where})" if where else ""
        query = f"SELECT * FROM parts WHERE delivery IS NOT NULL {condition} ORDER BY id DESC LIMIT ?"
        return self._rows(query, (*values, limit))

    def unseen(self, limit: int = 1000) -> list[int]:
        """Return the newest parts that were not ok and that no person has seen, as the audit has it; oldest first."""
        seen = self._rows("SELECT new FROM audit WHERE what = 'seen' ORDER BY id DESC LIMIT 1", ())
        last = 0
        with suppress(ValueError, TypeError, KeyError):  # a row that was changed: better too many than too few
            last = int(json.loads(seen[0]["new"])["to"]) if seen else 0
        rows = self._rows(
            "SELECT id FROM parts WHERE id > ? AND evaluation != 1 AND delivery IS NOT NULL ORDER BY id DESC LIMIT ?",
            (last, limit),
        )
        return [row["id"] for row in reversed(rows)]

    def between(self, start_utc: str, end_utc: str) -> Iterator[dict[str, Any]]:
        """Yield parts with ``start_utc <= time_utc < end_utc``, oldest first, a thousand at a time."""
        within = (
            "time_utc >= ? AND time_utc < ? AND delivery IS NOT NULL"  # numbers first: a year is read shift by shift
        )
        (ends,) = self._rows(
            f"SELECT min(id) AS first, max(id) AS last FROM parts WHERE {within}", (start_utc, end_utc)
        )
        after = (ends["first"] or 0) - 1
        while rows := self._rows(
            f"SELECT * FROM parts WHERE id > ? AND id <= ? AND {within} ORDER BY id LIMIT 1000",
            (after, ends["last"], start_utc, end_utc),
        ):
            yield from rows
            after = rows[-1]["id"]

    # -- stored sinks -------------------------------------------------------------------------------------------------

    def register(self, sink: str) -> None:
        """Note a stored sink, so that no record is forgotten before it has taken it."""
        with self._changing() as db:
            db.execute("INSERT OR IGNORE INTO cursors VALUES (?, 0)", (sink,))

    def undelivered(self, sink: str, limit: int = 100) -> list[dict[str, Any]]:
        """Return completed parts that a stored sink has not taken, in the order of completion."""
        return self._rows(
            "SELECT * FROM parts WHERE delivery > coalesce((SELECT delivery FROM cursors WHERE sink = ?), 0) "
            "ORDER BY delivery LIMIT ?",
            (sink, limit),
        )

    def backlog(self, sink: str) -> int:
        """Return how many parts a stored sink has not taken."""
        with self._lock:
            query = (
                "SELECT count(*) FROM parts WHERE delivery > coalesce((SELECT delivery FROM cursors WHERE sink = ?), 0)"
            )
            return int(self._db.execute(query, (sink,)).fetchone()[0])

    def delivered(self, sink: str, delivery: int) -> None:
        """Note that a stored sink has taken everything up to this ``delivery``."""
        with self._changing() as db:
            db.execute(
                "INSERT INTO cursors VALUES (?, ?) ON CONFLICT(sink) DO UPDATE SET delivery = max(delivery, excluded.delivery)",
                (sink, delivery),
            )

    # -- events -------------------------------------------------------------------------------------------------------

    def note(self, code: str, text: str) -> None:
        """Note an event."""
        with self._changing() as db:
            db.execute("INSERT INTO events (time_utc, code, text) VALUES (?, ?, ?)", (utc_now(), code, text))

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        return self._rows("SELECT * FROM events ORDER BY id DESC LIMIT ?", (limit,))

    def events_between(self, start_utc: str, end_utc: str, codes: Sequence[str]) -> list[dict[str, Any]]:
        """Return events of some codes with ``start_utc <= time_utc < end_utc``, oldest first."""
        marks = ",".join("?" * len(codes))
        query = f"SELECT * FROM events WHERE time_utc >= ? AND time_utc < ? AND code IN ({marks}) ORDER BY id"
        return self._rows(query, (start_utc, end_utc, *codes))

    def last_event(self, code: str) -> dict[str, Any] | None:
        """Return the newest event of a code; ``None`` without one."""
        rows = self._rows("SELECT * FROM events WHERE code = ? ORDER BY id DESC LIMIT 1", (code,))
        return rows[0] if rows else None

    # -- reviews ------------------------------------------------------------------------------------------------------

    def add_review(self, part: int, who: str, was_good: bool, note: str = "") -> None:
        """Note what a person says of a part, and audit it. The newest review of a part counts.

        Raises:
            VisionADError: There is no such part.
            sqlite3.Error: It cannot be written.
        """
        with self._changing() as db:
            row = db.execute("SELECT evaluation FROM parts WHERE id = ? AND delivery IS NOT NULL", (part,)).fetchone()
            if row is None:
                raise VisionADError(f"records {self.path}: expected a part that was judged, got number {part}")
            db.execute(
                "INSERT INTO reviews (part, who, was_good, time_utc, note) VALUES (?, ?, ?, ?, ?)",
                (part, who, int(was_good), utc_now(), note),
            )
            new = {"part": part, "was_good": was_good, "note": note}
            self._append_audit(db, who, "review", {"part": part, "evaluation": row[0]}, new)

    def reviews_of(self, first: int, last: int) -> dict[int, bool]:
        """Return part → whether it was good, by its newest review, for reviewed parts from ``first`` to ``last``."""
        rows = self._rows("SELECT part, was_good FROM reviews WHERE part BETWEEN ? AND ? ORDER BY id", (first, last))
        return {row["part"]: bool(row["was_good"]) for row in rows}

    # -- audit --------------------------------------------------------------------------------------------------------

    def audit(self, who: str, what: str, old: object = None, new: object = None) -> str:
        """Add a row to the audit. Return its hash."""
        with self._changing() as db:
            return self._append_audit(db, who, what, old, new)

    @staticmethod
    def _append_audit(db: sqlite3.Connection, who: str, what: str, old: object, new: object) -> str:
        last = db.execute("SELECT hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        previous = GENESIS if last is None else last[0]
        number = int(db.execute("SELECT coalesce(max(id), 0) + 1 FROM audit").fetchone()[0])
        row = (number, utc_now(), plain(who), plain(what), _json(old), _json(new), previous)
        digest = row_hash(*row)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, digest))
        db.execute("INSERT OR REPLACE INTO facts VALUES ('audit_head', ?)", (f"{number} {digest}",))
        return digest

    def audit_head(self) -> str:
        """Return the hash of the newest row of the audit, which sinks publish: without it a cut-off end is not seen."""
        with self._lock:
            last = self._db.execute("SELECT hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        return GENESIS if last is None else str(last[0])

    def audit_rows(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest rows of the audit, newest first."""
        return self._rows("SELECT * FROM audit ORDER BY id DESC LIMIT ?", (limit,))

    # -- retention ----------------------------------------------------------------------------------------------------

    def forget(self, before_utc: str) -> int:
        """Delete parts and events from before a time, except parts that a stored sink has not taken. Return how many parts."""
        with self._changing() as db:
            floor = db.execute("SELECT min(delivery) FROM cursors").fetchone()[0]
            count = db.execute(
                "DELETE FROM parts WHERE time_utc < ? AND delivery IS NOT NULL AND (? IS NULL OR delivery <= ?) "
                "AND id < (SELECT max(id) FROM parts)",
                (before_utc, floor, floor),
            ).rowcount
            db.execute("DELETE FROM events WHERE time_utc < ?", (before_utc,))
            db.execute("DELETE FROM reviews WHERE part NOT IN (SELECT id FROM parts)")
        return int(count)

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        with self._lock:
            rows = self._db.execute(query, tuple(values)).fetchall()
        return [dict(row) for row in rows]

    def _migrate(self) -> None:
        with self._changing() as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                raise VisionADError(
                    f"records {self.path}: expected schema {SCHEMA_VERSION} or older, got {version}; use the visionad release that "
                    "wrote it"
                )
            first = [SCHEMA] if version == 0 else []
            steps = first + [MIGRATIONS[v] for v in range(max(version, 1) + 1, SCHEMA_VERSION + 1)]
            for step in steps:
                for statement in filter(str.strip, step.split(";")):
                    db.execute(statement)
            note_identity(db)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def row_hash(number: int, time_utc: str, who: str, what: str, old: str, new: str, previous: str) -> str:
    """Return the sha256 of a row of the audit, which covers the hash of the row before it."""
    return hashlib.sha256(_json([number, time_utc, who, what, old, new, previous]).encode()).hexdigest()


def verify_audit(path: Path, head: str | None = None) -> list[str]:
    """Check the hash chain of an audit.

    Args:
        path: record database.
        head: hash of the newest row, as it was published; finds an end that was cut off, even if the record of it was changed too.

    Returns:
        One line for each row that was changed, removed or cut off; none if the chain is whole.

    Raises:
        VisionADError: There is no such database.
    """
    if not path.is_file():
        raise VisionADError(f"{path}: expected the records of a station, got no file")
    problems = []
    previous, expected = GENESIS, 1
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:  # a name may hold ? and %
            db.execute("BEGIN")  # rows and head of one moment
            known = db.execute("SELECT value FROM facts WHERE name = 'audit_head'").fetchone()
            for row in (AuditRow(*values) for values in db.execute("SELECT * FROM audit ORDER BY id")):
                if row.id != expected:
                    gap = f"row {expected}" if row.id == expected + 1 else f"rows {expected} to {row.id - 1}"
                    problems.append(f"{gap} of the audit removed")
                elif row.previous != previous:
                    problems.append(
                        f"row {row.id} of the audit does not follow row {row.id - 1}: one of them was replaced"
                    )
                if row_hash(*row[:-1]) != row.hash:
                    problems.append(f"row {row.id} of the audit was changed ({row.time_utc}, {row.who}: {row.what})")
                previous, expected = row.hash, row.id + 1
    except sqlite3.Error as exc:
        raise VisionADError(f"{path}: expected the records of a station: {exc}") from None
    number, _, digest = str(known[0]).partition(" ") if known else ("0", "", GENESIS)
    if int(number) >= expected:
        problems.append(f"the audit was cut off after row {expected - 1}: it had {number}")
    elif head is not None and previous != head:
        problems.append(f"the newest row of the audit, {expected - 1}, is not the one that was published ({head[:12]})")
    elif digest != previous and int(number) == expected - 1 and not problems:
        problems.append(f"row {expected - 1} of the audit was replaced")
    return problems


def audit_end(path: Path) -> tuple[int, str]:
    """Return number and hash of the newest row of an audit; 0 and :data:`GENESIS` without one.

    Raises:
        VisionADError: There is no such database.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    except sqlite3.Error as exc:
        raise VisionADError(f"{path}: expected the records of a station: {exc}") from None
    return (0, GENESIS) if row is None else (int(row[0]), str(row[1]))


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def result_object(row: Mapping[str, Any], station: str) -> dict[str, Any]:
    """Return what stored sinks deliver of a part: ``predict --json`` of the camera that decided, and the part's own fields."""
    cameras = json.loads(row["cameras"])
    name, facts = deciding_camera(cameras)
    reason_camera = {"camera": name} if name else {"camera": None}
    return {
        **facts,
        "id": row["id"],
        "time": row["time_utc"],
        "part": row["part"],
        "sequence": row["sequence"],
        "recipe": row["recipe"],
        "evaluation": row["evaluation"],
        "reason": row["reason"],
        "latency_ms": row["latency_ms"],
        "alarms": json.loads(row["alarms"]),
        "station": station,
        **reason_camera,
    }


def deciding_camera(cameras: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """Return the camera that decided a part, and its result: the first of the worst evaluation."""
    order = {"anomalous": 0, "review": 2, "unknown": 2, "ok": 3}

    def rank(facts: Mapping[str, Any]) -> int:
        if "error" in facts or "code" in facts or facts.get("class_mismatch") is not None:
            return 1
        return order.get(str(facts.get("verdict")), 1)

    ranked = sorted(cameras.items(), key=lambda item: rank(item[1]))
    return ranked[0] if ranked else ("", {})


def _json(value: object) -> str:
    return plain(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str), is_json=True)
