"""History and audit: find a part, say what was right, and see what was changed."""

from __future__ import annotations

import csv
import io
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visionad_runtime.station.records.records import verify_audit

from tests.browser.conftest import Watched
from tests.browser.station import RunningStation, numbered

Tabs = Callable[..., Watched]
pytestmark = pytest.mark.slow(group="browser")


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningStation]:
    """A station with 45 parts, every fifth one a reject; one of them is called like a formula."""
    images = [numbered(number, defect=number % 5 == 0) for number in range(1, 61)]
    running = RunningStation(tmp_path_factory.mktemp("history"), model, images).start()
    for number in range(1, 46):
        running.inspect("=1+1" if number == 10 else "")
    yield running
    running.stop()


def rows(tab: Watched) -> list[str]:
    found: list[str] = tab.page.evaluate("() => [...document.querySelectorAll('tbody th')].map(one => one.textContent)")
    return found


def test_s19_review_a_part(station: RunningStation, tabs: Tabs) -> None:
    """A false reject is found, reviewed and taken back; the filter is in the address; the audit has both."""
    tab = tabs(station)
    tab.until_verdict("OK", "REJECT")
    tab.page.goto(f"{station.url}/#/history?verdict=reject&review=none")
    tab.until("() => document.querySelectorAll('tbody tr').length === 9", 8)
    assert rows(tab)[-2:] == ["=1+1", "SN-0005"]
    tab.page.click("text=SN-0005")
    tab.until("() => document.querySelector('.detail h2').textContent.includes('SN-0005')", 8)
    tab.until("() => document.getElementById('evidence').dataset.drawn", 8)  # from the archive: it left the memory
    tab.page.click("#good")
    tab.until("() => document.getElementById('good').getAttribute('aria-pressed') === 'true'", 8)
    assert "id=5" in tab.page.url
    other = tabs(station)
    other.page.goto(tab.page.url.replace("review=none", "review=good"))
    other.until("() => document.querySelector('.detail h2')?.textContent.includes('SN-0005')", 8)
    assert rows(other) == ["SN-0005"]
    tab.page.click("#bad")
    tab.until("() => document.getElementById('bad').getAttribute('aria-pressed') === 'true'", 8)
    tab.page.goto(f"{station.url}/#/audit")
    tab.until("() => document.body.innerText.includes('The chain is whole.')", 8)
    reviews = tab.page.evaluate(
        "() => [...document.querySelectorAll('tbody tr')].filter(r => r.children[3].textContent === 'review').length"
    )
    assert reviews == 2


SLOW = """path => {
  const plain = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await plain(...asked);
    if (String(asked[0]).endsWith(path)) await new Promise((done) => setTimeout(done, 800));
    return answer;
  };
}"""
"""Answers of a path come late, as with a slow disk."""


def test_a_late_answer_changes_no_other_part(station: RunningStation, tabs: Tabs) -> None:
    """The next part is chosen before the review's answer: it keeps its own image, and gets no other part's review."""
    tab = tabs(station)
    tab.page.goto(f"{station.url}/?language=en#/history?id=32")
    tab.until("() => document.querySelector('.detail h2')?.textContent.includes('SN-0032')", 8)
    tab.page.evaluate(SLOW, "/records/32/review")
    tab.page.evaluate(SLOW, "/records/30")
    tab.page.keyboard.press("g")
    tab.page.keyboard.press("ArrowDown")
    tab.until("() => document.querySelector('.detail h2').textContent.includes('SN-0031')", 8)
    tab.until("() => document.getElementById('notice').textContent.includes('SN-0032 was good')", 8)
    assert "id=31" in tab.page.url and "SN-0031" in tab.page.inner_text(".detail h2")
    assert tab.page.inner_text("tr[aria-selected=true] th") == "SN-0031"
    tab.page.keyboard.press("ArrowDown")
    tab.until("() => document.querySelector('tr[aria-selected=true] th').textContent === 'SN-0030'", 8)
    assert "SN-0031" in tab.page.inner_text(".detail h2")  # its answer is on its way: nothing can be said of it yet
    assert tab.page.is_disabled("#good")
    tab.page.keyboard.press("b")
    tab.until("() => document.querySelector('.detail h2').textContent.includes('SN-0030')", 8)
    with sqlite3.connect(station.folder / "records.sqlite") as db:
        assert db.execute("SELECT part FROM reviews WHERE part BETWEEN 30 AND 32").fetchall() == [(32,)]


def test_statistics_that_are_opened_directly_are_of_the_shift(station: RunningStation, tabs: Tabs) -> None:
    """The shift's begin comes from the station after the page: table, report and CSV wait for it."""
    tab = tabs(station)
    tab.page.add_init_script("""const Own = WebSocket; window.WebSocket = class extends Own {
      set onmessage(take) { super.onmessage = (message) => setTimeout(take, 700, message); } };""")
    tab.page.goto(f"{station.url}/?language=en#/statistics")
    tab.until("() => document.querySelector('a[href*=report]') !== null", 8)
    since = tab.page.evaluate(
        "async () => (await import('/static/feed.js')).station.counts.since.replace('+00:00', 'Z')"
    )
    links = tab.page.evaluate("() => [...document.querySelectorAll('a[download]')].map(one => one.href)")
    assert len(links) == 2 and all(f"from={since.replace(':', '%3A')}" in link for link in links), (since, links)


def test_s19_a_spreadsheet_opens_no_formula(station: RunningStation) -> None:
    cookie = station.login(panel=station.panel_token())
    status, content, headers = station.request("GET", "/api/1/export.csv?verdict=reject", headers={"Cookie": cookie})
    assert status == 200 and headers["content-type"].startswith("text/csv")
    assert content.startswith(b"\xef\xbb\xbf")
    table = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert [row["part"] for row in table][:2] == ["SN-0005", "'=1+1"]
    assert len(table) == 9 and {row["evaluation"] for row in table} == {"2"}


def test_s19_a_broken_audit_is_named(station: RunningStation, tabs: Tabs) -> None:
    """Page and command name the same row."""
    path = station.folder / "records.sqlite"
    with sqlite3.connect(path) as db:
        changed = db.execute("SELECT id, who FROM audit WHERE what = 'review' ORDER BY id LIMIT 1").fetchone()
        db.execute("UPDATE audit SET who = 'somebody' WHERE id = ?", (changed[0],))
    try:
        (problem,) = verify_audit(path)
        tab = tabs(station)
        tab.page.goto(f"{station.url}/#/audit")
        tab.until("text => document.body.innerText.includes(text)", 8, problem)
        assert f"row {changed[0]} " in problem
    finally:
        with sqlite3.connect(path) as db:
            db.execute("UPDATE audit SET who = ? WHERE id = ?", (changed[1], changed[0]))


def test_an_image_outside_the_archive_is_not_served(station: RunningStation) -> None:
    cookie = station.login(panel=station.panel_token())
    secret = station.folder / "0000000001-ok-top.png"
    secret.write_bytes(b"not for everybody")
    with sqlite3.connect(station.folder / "records.sqlite") as db:
        db.execute("UPDATE parts SET archived = ? WHERE id = 1", (f'["{secret}"]',))
    assert station.request("GET", "/api/1/records/1/archived/0", headers={"Cookie": cookie})[0] == 404
    assert station.request("GET", "/api/1/records/5/archived/0", headers={"Cookie": cookie})[0] == 200
    assert station.request("GET", "/static/../__main__.py", headers={"Cookie": cookie})[0] == 404


def test_a_part_is_computed_again_with_the_same_bits(station: RunningStation, tabs: Tabs) -> None:
    """From the archive, with the bank version of then; a record that was changed is found."""
    tab = tabs(station)
    tab.page.goto(f"{station.url}/?language=en#/history?verdict=reject&id=20")
    tab.until("() => document.querySelector('.detail h2')?.textContent.includes('SN-0020')", 10)
    tab.page.click("#replay")
    tab.until("() => document.getElementById('notice').textContent.includes('every bit is the same')", 40)
    with sqlite3.connect(station.folder / "records.sqlite") as db:
        (text,) = db.execute("SELECT cameras FROM parts WHERE id = 25").fetchone()
        facts = json.loads(text)
        facts["top"]["score"] += 1e-9
        db.execute("UPDATE parts SET cameras = ? WHERE id = 25", (json.dumps(facts),))
    cookie = station.login(panel=station.panel_token())
    headers = {"Cookie": cookie}
    status, answer, _ = station.request("POST", "/api/1/records/25/replay", {}, headers)
    assert status == 200 and not answer["cameras"]["top"]["same"] and answer["cameras"]["top"]["stage"]
    assert station.request("POST", "/api/1/records/2/replay", {}, headers)[0] == 404  # a good part: it was not kept


def test_an_image_is_called_kept_only_if_it_is(station: RunningStation) -> None:
    """The newest parts are in the worker's memory, until it is replaced; the audit has what was kept, and nothing else."""
    headers = {"Cookie": station.login(panel=station.panel_token())}

    def keep(part: int) -> tuple[int, str]:
        status, answer, _ = station.request("POST", f"/api/1/records/{part}/keep", {}, headers)
        return status, answer.get("code", "")

    assert keep(44) == (200, "")
    assert station.request("GET", "/api/1/records/44/archived/0", headers=headers)[0] == 200
    assert keep(9_999_999) == (404, "no_part")
    assert keep(2) == (404, "not_in_memory")  # 43 others came since
    station.signal(station.process("worker"), signal.SIGKILL)
    station.until(lambda: not station.ready())
    station.until(station.ready, 60)
    assert keep(43) == (404, "not_in_memory")
    with sqlite3.connect(station.folder / "records.sqlite") as db:
        assert db.execute("SELECT new FROM audit WHERE what = 'keep image'").fetchall() == [('{"part": 44}',)]
