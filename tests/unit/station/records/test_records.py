"""Records survive a kill; the audit names what was changed; stored sinks get each record once it is there (T14)."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front.cycle import Job
from visionad_runtime.station.records.records import Records, result_object, verify_audit
from visionad_runtime.station.sink import Outcome

UTC = "2026-11-30T06:00:00.000+00:00"


def job(number: int) -> Job:
    return Job(number, number, f"SN-{number}", 1, 0.0, 1.0, UTC)


def outcome(number: int, evaluation: int = 1) -> Outcome:
    facts = {"top": {"image": "a.png", "verdict": "ok", "score": 0.25, "class": "gear"}}
    reason = ("none", "anomalous", "internal")[evaluation - 1]
    return Outcome(number, UTC, number, f"SN-{number}", 1, evaluation, reason, 0.25, 0.5, 12.5, 3, facts)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records.sqlite")


def test_one_row_a_part(records: Records) -> None:
    records.accept(job(1))
    assert records.parts() == []
    records.complete([outcome(1), outcome(2, 2)])
    records.complete([replace(outcome(1), evaluation=2)])  # what was offered stays
    rows = records.parts()
    assert [(r["id"], r["evaluation"], r["part"], r["delivery"]) for r in rows] == [
        (1, 1, "SN-1", 1),
        (2, 2, "SN-2", 2),
    ]
    assert result_object(rows[0], "press-3") == {
        "image": "a.png", "verdict": "ok", "score": 0.25, "class": "gear", "id": 1, "time": UTC, "part": "SN-1", "sequence": 1,
        "recipe": 1, "evaluation": 1, "reason": "none", "latency_ms": 12.5, "alarms": [], "station": "press-3", "camera": "top",
    }  # fmt: skip


def test_a_part_in_hand_at_a_kill_is_recorded_as_not_decidable(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parent)]!r}
        import test_records as t
        records = t.Records(t.Path({str(tmp_path / "r.sqlite")!r}))
        records.accept(t.job(1)); records.complete([t.outcome(1)]); records.accept(t.job(2))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    records = Records(tmp_path / "r.sqlite")
    assert records.finish_interrupted() == 1 and records.finish_interrupted() == 0
    assert [(r["id"], r["evaluation"], r["reason"]) for r in records.parts()] == [(1, 1, "none"), (2, 3, "internal")]
    assert records.last_id() == 2


def test_stored_sinks_read_by_cursor(records: Records) -> None:
    records.register("webhook")
    records.complete([outcome(n) for n in (3, 1, 2)])  # in the order of completion
    assert [r["id"] for r in records.undelivered("mqtt")] == [3, 1, 2]
    records.delivered("mqtt", 2)
    assert [r["id"] for r in records.undelivered("mqtt")] == [2] and records.backlog("mqtt") == 1
    records.delivered("mqtt", 1)  # never backwards
    assert records.backlog("mqtt") == 1 and records.backlog("webhook") == 3
    assert records.forget("2027-01-01") == 0  # the webhook has taken none, and the highest number stays
    records.delivered("webhook", 2)
    assert records.forget("2027-01-01") == 1
    assert [r["id"] for r in records.parts()] == [2, 3]


def test_records_of_a_newer_release_are_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "r.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(VisionADError, match="expected schema 2 or older, got 99"):
        Records(tmp_path / "r.sqlite")
    (tmp_path / "x.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(VisionADError, match=r"x\.sqlite cannot be used"):
        Records(tmp_path / "x.sqlite")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE audit SET new = '\"0.9\"' WHERE id = 3", "row 3 of the audit was changed"),
        ("UPDATE audit SET who = 'nobody' WHERE id = 1", "row 1 of the audit was changed"),
        ("DELETE FROM audit WHERE id = 2", "row 2 of the audit removed"),
        ("DELETE FROM audit WHERE id >= 2 AND id <= 3", "rows 2 to 3 of the audit removed"),
        ("DELETE FROM audit WHERE id = 1", "row 1 of the audit removed"),
        ("DELETE FROM audit WHERE id >= 4", "cut off after row 3: it had 5"),
        ("DELETE FROM audit", "cut off after row 0: it had 5"),
    ],
)
def test_the_audit_names_each_row_that_was_touched(records: Records, damage: str, said: str) -> None:
    for number in range(5):
        records.audit("setter", "threshold", number, number + 1)
    head = records.audit_head()
    assert verify_audit(records.path) == verify_audit(records.path, head) == []
    records.close()
    with sqlite3.connect(records.path) as db:
        db.execute(damage)
    problems = verify_audit(records.path)
    assert said in problems[0], problems


def test_a_published_head_finds_an_end_that_was_cut_with_care(records: Records) -> None:
    for number in range(5):
        records.audit("setter", "threshold", number, number + 1)
    head = records.audit_head()
    records.close()
    with sqlite3.connect(records.path) as db:
        db.execute("DELETE FROM audit WHERE id = 5")
        last = db.execute("SELECT hash FROM audit WHERE id = 4").fetchone()[0]
        db.execute("UPDATE facts SET value = ? WHERE name = 'audit_head'", (f"4 {last}",))
    assert verify_audit(records.path) == []
    assert "is not the one that was published" in verify_audit(records.path, head)[0]


def test_records_of_version_1_are_migrated(tmp_path: Path) -> None:
    from visionad_runtime.station.records import schema as module

    path = tmp_path / "r.sqlite"
    records = Records(path)
    records.complete([outcome(1), outcome(2, 2)])
    records.audit("setter", "threshold", 1, 2)
    head = records.audit_head()
    records.close()
    with sqlite3.connect(path) as db:  # as version 1 left it
        db.executescript("DROP TABLE reviews; DROP INDEX events_time; PRAGMA user_version=1")
    records = Records(path)
    assert [r["id"] for r in records.parts()] == [1, 2] and records.audit_head() == head
    records.add_review(2, "tester", True)
    assert records.reviews_of(1, 9) == {2: True}
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (module.SCHEMA_VERSION,)
        old = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")}
    Records(tmp_path / "new.sqlite").close()
    with sqlite3.connect(tmp_path / "new.sqlite") as db:
        assert {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")} == old


def test_the_newest_review_counts_and_is_audited(records: Records) -> None:
    records.complete([outcome(n, 2) for n in (1, 2, 3)])
    records.add_review(2, "anna", True, "a hair")
    records.add_review(2, "ben", False)
    records.add_review(3, "anna", True)
    assert records.reviews_of(1, 2) == {2: False} and records.reviews_of(1, 3) == {2: False, 3: True}
    row = records.audit_rows()[-1]
    assert (row["who"], row["what"], row["new"]) == (
        "anna",
        "review",
        '{"note": "a hair", "part": 2, "was_good": true}',
    )
    with pytest.raises(VisionADError, match="expected a part that was judged, got number 9"):
        records.add_review(9, "anna", True)
    assert records.forget("2027-01-01") == 2  # the newest part stays, and its review
    assert records.reviews_of(1, 9) == {3: True}
    assert verify_audit(records.path) == []


def test_text_that_is_no_utf8_keeps_no_record_from_being_written(tmp_path: Path) -> None:
    """A file name of undecodable bytes once kept all results after it in memory."""
    records = Records(tmp_path / "records.sqlite")
    odd = "caf\udcff\u00e9"
    plain = r"caf\xff" + "\u00e9"
    records.accept(job(1)._replace(part=odd))
    facts = {"top": {"image": odd, "verdict": "ok"}}
    records.complete([replace(outcome(1), part=odd, cameras=facts), outcome(2)])
    records.add_archived(1, [odd])
    records.note("lost", odd)
    records.add_review(1, odd, True, odd)
    records.audit(odd, odd, {odd: 1}, odd)
    assert [row["part"] for row in records.parts()] == [plain, "SN-2"]
    assert result_object(records.parts()[0], "press-3")["image"] == plain
    records.close()
    assert verify_audit(tmp_path / "records.sqlite") == []
