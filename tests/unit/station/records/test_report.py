"""``visionad report`` and ``visionad audit verify``: the same numbers on the console, as CSV, JSON and HTML."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.report import parse_time
from visionad_runtime.station.sink import Outcome

STATION = """\
station: press-3
model: model
bank: bank
cameras: {top: {kind: folder, path: images}}
recipes: {1: {name: "=gear <1>", class: gear}}
shifts: {zone: Europe/Berlin, start: ["06:00", "14:00", "22:00"]}
"""


@pytest.fixture
def station(tmp_path: Path) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(STATION)
    records = Records(tmp_path / "records.sqlite")
    facts = {"top": {"verdict": "anomalous", "regions": [{"bbox": [0, 0, 9, 9], "score": 1.0}]}}
    for number in range(1, 21):
        evaluation, reason = [(1, "none"), (2, "anomalous"), (3, "review"), (3, "deadline")][number % 4]
        time_utc = f"2026-11-30T{4 + number // 10:02}:{number:02}:00.000+00:00"
        records.complete(
            [Outcome(number, time_utc, number, "", 1, evaluation, reason, 0.1, 0.5, 10.0 + number, 1, facts)]
        )
    records.add_review(13, "anna", True)
    records.audit("anna", "threshold", 0.4, 0.5)
    records.close()
    return path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv(station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.csv"
    assert run(["report", str(station), "--from", "2026-11-30", "--to", "2026-11-30", "--csv", str(out)]) == 0
    found = rows(out.read_bytes().decode())
    assert [(r["shift"], r["recipe"], r["parts"]) for r in found] == [
        ("2026-11-29 22:00", "1", "9"), ("2026-11-29 22:00", "all", "9"), ("2026-11-30 06:00", "1", "11"),
        ("2026-11-30 06:00", "all", "11"),
    ]  # fmt: skip
    early = found[2]
    assert (early["from_utc"], early["from_local"]) == ("2026-11-30T05:00:00.000+00:00", "2026-11-30 06:00:00+01:00")
    assert found[0]["from_local"] == "2026-11-30 00:00:00+01:00"  # cut to the asked time
    assert (early["ok"], early["anomalous"], early["review"], early["not_decidable_deadline"]) == ("3", "2", "3", "3")
    assert early["recipe_name"] == "'=gear <1>"  # no formula
    assert (early["rejects_reviewed"], early["false_rejects"], early["false_rejects_low"]) == ("1", "1", "0.025000")
    assert (early["p50_ms"], early["max_ms"], early["missed"]) == ("25.0", "30.0", "")
    assert found[3]["missed"] == "0" and early["regions"] == "top x 0-127 y 0-127: 8"
    console = capsys.readouterr().out
    assert "press-3: 2026-11-30 00:00:00+01:00 to 2026-12-01 00:00:00+01:00, Europe/Berlin" in console
    assert re.search(r"2026-11-30 06:00 +all +11 +3 +2 +3 +3 +0 +0 +25\.0 ", console)
    assert "1 of 1 (2.5 to 100.0 %) reviewed anomalous parts were good" in console


def test_json_and_bare_records(station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["report", str(tmp_path / "records.sqlite"), "--from", "2026-11-30", "--to", "2026-11-30T05:00", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["zone"] == "UTC" and found["from"] == "2026-11-30T00:00:00.000+00:00"
    assert [(s["shift"], s["total"]["parts"]) for s in found["shifts"]] == [("2026-11-29 22:00", 9)]


def test_html_is_one_escaped_file(station: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert run(["report", str(station), "--from", "2026-11-30", "--html", str(out)]) == 0
    text = out.read_text()
    assert "=gear &lt;1&gt;" in text and "<1>" not in text and "@media print" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text) and "<script" not in text
    cells: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_data(self, data: str) -> None:
            cells.append(data.strip())

    Reader().feed(text)
    assert "Shift 2026-11-30 06:00" in cells and "1 of 1 (2.5 to 100.0 %)" in cells and "25.0" in cells


def test_an_empty_time(station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert run(["report", str(station), "--from", "2020-01-01", "--to", "2020-01-02", "--html", str(out)]) == 0
    assert "no part was inspected" in capsys.readouterr().out and "No part was inspected" in out.read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--from", "yesterday"], "expected a time such as 2026-11-30"),
        (["--from", "2026-11-30", "--to", "2026-11-01"], "expected --to after --from"),
        (["--from", "0001-01-01"], "expected "),
        (["--from", "0001-01-01 00:00+05:00"], "expected a time such as"),
        (["--from", "0001-01-02"], "expected times from 1970 to 8999"),
        (["--from", "2026-11-30", "--to", "9999-12-30"], "expected times from 1970 to 8999"),
    ],
)
def test_wrong_times(station: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(station), *args]) == 2
    assert said in capsys.readouterr().err


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "station.yaml"
    assert run(["report", str(path), "--from", "2026-11-30"]) == 2
    path.write_text(STATION)
    assert run(["report", str(path), "--from", "2026-11-30"]) == 2
    path.write_text(STATION + "shfts: 1\n")
    assert run(["audit", "verify", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "expected a station file or records" in lines[0] and "has no records yet" in lines[1]
    assert "station.yaml:7: shfts: unknown key; did you mean 'shifts'?" in lines[2]


def test_times() -> None:
    def at(text: str, **options: bool) -> str:
        return parse_time(text, "Europe/Berlin", **options).isoformat()

    assert at("2026-11-30") == "2026-11-29T23:00:00+00:00"
    assert at("2026-11-30", is_end=True) == "2026-11-30T23:00:00+00:00"
    assert at("2026-07-01 06:00") == "2026-07-01T04:00:00+00:00"
    assert at("2026-11-30T06:00Z", is_end=True) == "2026-11-30T06:00:00+00:00"
    assert parse_time("2026-11-30", "UTC") == datetime(2026, 11, 30, tzinfo=UTC)
    with pytest.raises(VisionADError, match="expected a time"):
        at("2026-13-01")


def test_audit_verify(station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "records.sqlite"
    records = Records(database)
    head = records.audit_head()
    records.close()
    for file in (station, database):
        assert run(["audit", "verify", str(file), "--head", head]) == 0
        assert capsys.readouterr().out == f"whole: 2 rows, newest {head}\n"
    assert run(["audit", "verify", str(station), "--head", "0" * 64]) == 1
    assert "is not the one that was published" in capsys.readouterr().out
    with sqlite3.connect(database) as db:
        db.execute("UPDATE audit SET who = 'nobody' WHERE id = 1")
        db.execute("DELETE FROM audit WHERE id = 2")
    assert run(["audit", "verify", str(station)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "row 1 of the audit was changed" in lines[0] and "cut off after row 1" in lines[1]
