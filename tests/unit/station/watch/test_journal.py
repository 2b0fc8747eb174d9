"""The journal: no image is lost to a restart, none inspected twice."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest
from visionad_runtime import VisionADError
from visionad_runtime.images.discover import ImageFile
from visionad_runtime.station.watch.detected import DetectedFile, FileStamp, content_digest
from visionad_runtime.station.watch.journal import Journal


def detected(name: str, size: int = 5, modified: int = 7) -> DetectedFile:
    return DetectedFile(ImageFile(Path("/in", name), Path(name)), FileStamp(size, modified))


def test_a_journal_knows_what_it_was_told(tmp_path: Path) -> None:
    path, ones = (
        tmp_path / "deep" / "journal.jsonl",
        [detected("a.png"), detected("sub/ü b.png"), detected("\udcff.png")],
    )
    journal = Journal(path)
    assert journal.processed(ones) == []
    for one in ones:
        journal.append(one, {"verdict": "ok"})
    journal.close()
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"name", "bytes", "modified_ns", "changed_ns", "time", "verdict"}] * 3
    again = Journal(path)
    others = [detected("a.png", size=6), detected("a.png", modified=8), detected("c.png")]
    assert again.processed([*others, *ones]) == ones
    again.append(others[2], {})
    again.close()
    assert Journal(path).processed([*others, *ones]) == [*ones, others[2]]


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("nuls", [0, 40])
def test_a_line_that_was_cut_off_is_taken_out(tmp_path: Path, cut: int, nuls: int) -> None:
    path, one, two = tmp_path / "journal", detected("a.png"), detected("b.png")
    journal = Journal(path)
    journal.append(one, {})
    whole = path.stat().st_size
    journal.append(two, {})
    journal.close()
    path.write_bytes(path.read_bytes()[: whole + cut] + b"\0" * nuls)
    again = Journal(path)
    assert again.processed([one, two]) == [one]
    assert path.stat().st_size == whole
    again.append(two, {})
    again.close()
    assert Journal(path).processed([one, two]) == [one, two]


@pytest.mark.parametrize(
    "content", [b"notes", b"notes\n", b'{"a": 1}\n', b'{"a": 1}', b"[1]\n", b"\x89PNG\r\n\x1a\n\0", b"3\n"]
)
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(VisionADError, match="line 1: expected a line of"):
        Journal(path).processed([detected("a.png")])
    assert path.read_bytes() == content


def test_a_damaged_line_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, ones = tmp_path / "journal", [detected("a.png"), detected("b.png")]
    journal = Journal(path)
    for one in ones:
        journal.append(one, {})
    journal.close()
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0" * 500 + b"\n" + b'{"name": "c.png", "byt\n' + second)
    assert Journal(path).processed(ones) == ones
    assert "passed over 2 damaged lines" in caplog.text


def test_a_journal_that_cannot_be_written_keeps_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VisionADError, match="cannot be used"):
        Journal(tmp_path)
    ones = [detected(f"{i}.png") for i in range(4)]
    journal = Journal(tmp_path / "journal")
    journal.append(ones[0], {})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        journal.append(ones[1], {})
        journal.append(ones[2], {})
        assert (tmp_path / "journal").read_bytes().count(b"\n") == 1  # and no torn line
    journal.append(ones[3], {})
    journal.close()
    assert [r.getMessage().split("; ")[0].rpartition("/")[2] for r in caplog.records] == [
        "journal could not be written: No space left on device",
        "journal is written again",
    ]
    assert Journal(tmp_path / "journal").processed(ones) == ones
    journal = Journal(tmp_path / "journal")
    monkeypatch.setattr(os, "fsync", full)
    journal.append(detected("z.png"), {})
    with pytest.raises(VisionADError, match="No space left on device; 1 images are not noted"):
        journal.close()


def test_one_process_uses_a_journal(tmp_path: Path) -> None:
    path = tmp_path / f"{'j' * 249}.jsonl"  # as long as a name can be
    first = Journal(path)
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "." / path.name, tmp_path / "link"):
        with pytest.raises(VisionADError, match="is in use by another `visionad watch`"):
            Journal(name)
    first.close()
    Journal(path).close()
    Journal(tmp_path / "other").close()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(_: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("visionad_runtime.formats.files.try_lock", none)
    Journal(tmp_path / "journal").close()
    assert "cannot be locked: No locks available" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_device_is_not_read_back(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(Path("/dev/full"), days=1)
    assert journal.processed([detected("a.png")]) == []
    journal.append(detected("a.png"), {})
    with pytest.raises(VisionADError, match="No space left"):
        journal.close()


# --- content -----------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, name: str, data: bytes, when: int = 1_790_000_000) -> DetectedFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (when, when))
    return DetectedFile(ImageFile(path, Path(name)), FileStamp.of(path.stat()), content_digest(path))


def test_another_content_with_the_same_size_and_date_is_another_image(tmp_path: Path) -> None:
    one = on_disk(tmp_path, "latest.bmp", b"good")
    journal = Journal(tmp_path / "journal")
    journal.append(one, {})
    journal.close()
    (tmp_path / "latest.bmp").chmod(0o600)  # the change time tells no more than that something was changed
    same = one._replace(stamp=FileStamp.of(one.image.path.stat()), sha256=None)
    assert same.stamp.changed_ns != one.stamp.changed_ns
    assert Journal(tmp_path / "journal").processed([same]) == [same._replace(sha256=one.sha256)]
    other = on_disk(tmp_path, "latest.bmp", b"rust")
    assert other.stamp.written == one.stamp.written
    journal = Journal(tmp_path / "journal")
    assert journal.processed([other]) == []
    journal.append(other, {})
    journal.close()
    assert Journal(tmp_path / "journal").processed([other]) == [other]


def test_a_coarse_clock_is_not_trusted_for_the_last_images(tmp_path: Path) -> None:
    one = on_disk(tmp_path, "latest.bmp", b"good")
    coarse = one._replace(stamp=one.stamp._replace(changed_ns=0))
    journal = Journal(tmp_path / "journal")
    journal.append(coarse, {})
    journal.close()
    assert Journal(tmp_path / "journal").processed([coarse]) == [coarse]
    on_disk(tmp_path, "latest.bmp", b"rust")
    assert Journal(tmp_path / "journal").processed([coarse]) == []


def test_journals_of_earlier_releases_are_continued(tmp_path: Path) -> None:
    one = on_disk(tmp_path, "a.bmp", b"good")
    line = {"name": "a.bmp", "bytes": 4, "modified_ns": one.stamp.modified_ns, "time": "2026-11-01T00:00:00+00:00"}
    (tmp_path / "journal").write_text(json.dumps(line) + "\n")
    assert Journal(tmp_path / "journal").processed([one]) == [one._replace(sha256=None)]


# --- days ---------------------------------------------------------------------------------------------------------------


def test_days_are_kept_apart_and_forgotten(tmp_path: Path) -> None:
    folder, path = tmp_path / "in", tmp_path / "journal.jsonl"
    day = date(2026, 11, 1)
    ones = [on_disk(folder, f"{i}.png", b"x", 1_790_000_000 + i) for i in range(6)]
    for i, one in enumerate(ones):  # the process ends after each of them
        if i:
            written = datetime.combine(day + timedelta(days=i - 1), time(12), UTC).timestamp()
            os.utime(path, (written, written))
        journal = Journal(path, folder, 2, today=lambda i=i: day + timedelta(days=i))  # type: ignore[misc]
        journal.append(one, {})
        journal.close()
        one.image.path.unlink()
    assert sorted(p.name for p in tmp_path.glob("j*")) == [
        "journal-2026-11-05.jsonl",
        "journal.jsonl",
    ]
    assert path.read_bytes().count(b"\n") == 1
    again = Journal(path, folder)  # without days: the older lines count all the same
    assert again.processed(ones) == ones[4:]


def test_lines_of_images_that_still_lie_there_are_not_forgotten(tmp_path: Path) -> None:
    folder, path, now = tmp_path / "in", tmp_path / "journal", [date(2026, 11, 1)]
    ones = [on_disk(folder, f"{i}.png", b"x", 1_790_000_000 + i) for i in range(3)]
    journal = Journal(path, folder, 1, today=lambda: now[0])
    for one in ones[:2]:
        journal.append(one, {})
    ones[0].image.path.unlink()
    now[0] = date(2026, 12, 1)
    journal.append(ones[2], {})
    journal.close()
    assert sorted(p.name for p in tmp_path.glob("j*")) == ["journal", "journal-2026-11-01"]
    assert (tmp_path / "journal-2026-11-01").read_bytes().count(b"\n") == 1
    assert Journal(path, folder, 1).processed(ones[1:]) == ones[1:]


def test_a_clock_that_was_set_back_overwrites_no_day(tmp_path: Path) -> None:
    now = [date(2026, 11, 1)]
    journal = Journal(tmp_path / "journal", tmp_path, 9, today=lambda: now[0])
    for i, day in enumerate((1, 2, 1, 2, 3)):
        now[0] = date(2026, 11, day)
        journal.append(detected(f"{i}.png"), {})
    journal.close()
    files = sorted(p.name for p in tmp_path.glob("j*"))
    assert files == [
        "journal",
        "journal-2026-11-01",
        "journal-2026-11-01-2",
        "journal-2026-11-02",
        "journal-2026-11-02-2",
    ]
    assert len(Journal(tmp_path / "journal").processed([detected(f"{i}.png") for i in range(5)])) == 5
