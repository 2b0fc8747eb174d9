"""What a second run does: images with an error are tried again, damaged parts are written again, and the rest is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run

from tests.data import part

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.fleet.batch.rows import errors_of


class Archive:
    """A folder of five images, of which the second is bad, in blocks of three; and its results."""

    def __init__(self, folder: Path, model: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.images, self.out = folder / "images", folder / "out"
        self.model, self.bank, self.capsys = model, bank, capsys
        self.images.mkdir()
        for i in range(5):
            cv2.imwrite(str(self.images / f"{i}.png"), part(i, defect=i == 4))
        self.bad = self.images / "1.png"
        self.bad.write_bytes(b"no image")

    def run(self, *more: str) -> tuple[dict[str, Any], str]:
        """Return what a run says on stdout and stderr."""
        arguments = ["batch", self.model, self.bank, self.images, "--out", self.out, "--block", "3", "--json"]
        assert run([str(a) for a in (*arguments, *more)]) == 0
        out, err = self.capsys.readouterr()
        return json.loads(out), err

    @property
    def parts(self) -> list[Path]:
        return sorted(self.out.glob("run=*/part-*.parquet"))

    def rows(self) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        return [row for path in self.parts for row in pq.ParquetFile(path).read().to_pylist()]


@pytest.fixture(scope="module")
def bank(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "bank"
    with Inspector.open(tiny_model, folder, threads=1) as inspector:
        inspector.enroll("disc", [part(100 + i) for i in range(3)])
    return folder


@pytest.fixture
def archive(tmp_path: Path, tiny_model: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> Archive:
    return Archive(tmp_path, tiny_model, bank, capsys)


WAYS = [["--workers", "1"], ["--workers", "2"], ["--workers", "1", "--shard", "0/2"]]


@pytest.mark.parametrize("way", WAYS, ids=["alone", "processes", "shard"])
def test_a_mended_image_is_inspected_by_the_next_run(way: list[str], archive: Archive) -> None:
    first, _ = archive.run("--workers", "1")
    assert first["counts"]["error"] == 1
    before, untouched = archive.rows(), archive.parts[1].stat()
    shutil.copy(archive.images / "0.png", archive.bad)
    again, err = archive.run(*way)
    assert (again["kept"], again["blocks"]) == ((0, 1) if "--shard" in way else (1, 2))
    assert sum(again["counts"].values()) == 3 and "error" not in again["counts"] and err == ""
    rows = archive.rows()
    assert rows[1]["error"] is None and rows[1]["score"] == rows[0]["score"]
    assert [row for row in rows if row["id"] != 1] == [row for row in before if row["id"] != 1]
    assert archive.parts[1].stat().st_ino == untouched.st_ino
    assert archive.run(*way)[0]["counts"] == {}


def test_an_image_that_stays_bad_is_named_by_each_run(archive: Archive) -> None:
    archive.run("--workers", "1")
    again, err = archive.run("--workers", "1")
    assert again["counts"]["error"] == 1
    assert err == "visionad: 1 images could not be read; the column `error` says why\n"


def test_a_verdict_outlives_its_image(archive: Archive) -> None:
    """An archive may be away when the next run comes; what was known is kept."""
    archive.run("--workers", "1")
    before = archive.rows()
    (archive.images / "0.png").write_bytes(b"")
    archive.run("--workers", "1")
    assert archive.rows()[0] == before[0]


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"PAR1" + b"\0" * 100 + b"PAR1"], ids=["empty", "noise", "marks"])
def test_a_damaged_part_is_written_again(data: bytes, archive: Archive) -> None:
    archive.run("--workers", "1")
    before = archive.rows()
    archive.parts[1].write_bytes(data)
    assert errors_of(data, 1) is None
    archive.run("--workers", "1")

    def facts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "timings_ms"} for row in rows]

    assert facts(archive.rows()) == facts(before)


def test_a_part_that_was_cut_is_written_again(archive: Archive) -> None:
    import pyarrow.parquet as pq
    from visionad_runtime.fleet.parquet import to_parquet

    archive.run("--workers", "1")
    archive.parts[1].write_bytes(to_parquet(pq.ParquetFile(archive.parts[1]).read().slice(0, 1)))
    again, _ = archive.run("--workers", "1")
    assert again["kept"] == 0
    assert [row["id"] for row in archive.rows()] == list(range(5))


def test_a_part_without_the_columns_is_written_again(archive: Archive) -> None:
    import pyarrow as pa
    from visionad_runtime.fleet.parquet import to_parquet

    archive.run("--workers", "1")
    archive.parts[1].write_bytes(to_parquet(pa.table({"image": ["a"]})))
    archive.run("--workers", "1")
    assert [row["id"] for row in archive.rows()] == list(range(5))


def test_a_run_beside_a_damaged_record_is_refused(archive: Archive) -> None:
    archive.run("--workers", "1")
    (record,) = archive.out.glob("run=*/run.json")
    record.write_text("[]")
    arguments = ["batch", archive.model, archive.bank, archive.images, "--out", archive.out, "--block", "3"]
    assert run(list(map(str, arguments))) == 2
    err = archive.capsys.readouterr().err
    assert "run.json" in err and len(err.splitlines()) == 1
