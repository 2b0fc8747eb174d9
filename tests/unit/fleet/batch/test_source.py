"""What names a source, and what a list of files may look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.batch.source import Source, read_source


def days(folder: Path) -> list[Path]:
    """Return two folders that hold images of the same names, and lists of them."""
    made = [folder / "day1", folder / "day2"]
    for day in made:
        (day / "in").mkdir(parents=True)
        (day / "in" / "p1.png").write_bytes(b"")
        (day / "list.txt").write_text("in/p1.png\n")
    return made


@pytest.mark.parametrize("text", ["in", "in/p1.png", "list.txt"])
def test_a_relative_path_elsewhere_is_another_image(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for day in days(tmp_path):
        monkeypatch.chdir(day)
        digests.append(read_source(text, 16).digest())
    assert digests[0] != digests[1]
    monkeypatch.chdir(tmp_path / "day1")
    assert read_source(text, 16).digest() == digests[0]


def test_one_place_is_one_source_wherever_it_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day, other = days(tmp_path)
    urls = tmp_path / "urls.txt"
    urls.write_text("s3://line/in/p1.png\n")
    found = set()
    for where in (day, other, day / "in"):
        monkeypatch.chdir(where)
        found.add((read_source(str(day / "in"), 16).digest(), read_source(str(urls), 16).digest()))
    monkeypatch.chdir(day)
    from_day = read_source("../day1/in", 16)
    monkeypatch.chdir(other)
    assert len(found) == 1 and digest_of(from_day, day, monkeypatch) == digest_of(from_day, other, monkeypatch)


def digest_of(source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    return source.digest()


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", " \t\r\n"], ids=["unix", "windows", "blank", "both"])
def test_a_list_may_come_from_any_editor(start: str, end: str, tmp_path: Path) -> None:
    names = [f"{tmp_path}/a b.png", "s3://line/b.png", "in/\ufeffc.png"]
    file = tmp_path / "list.txt"
    file.write_bytes((start + end.join([*names, "", " "])).encode())
    assert read_source(str(file)).images.to_pylist() == names


@pytest.mark.skipif(os.name == "nt", reason="Windows drops blanks at the end of a name")
def test_a_name_that_ends_in_blanks_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png ").write_bytes(b"")
    file = tmp_path / "list.txt"
    file.write_text(f"{tmp_path}/a.png \n")
    assert read_source(str(file)).images.to_pylist() == [f"{tmp_path}/a.png "]


def test_a_block_has_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bank").mkdir()
    arguments = ["batch", tmp_path / "model", tmp_path / "bank", tmp_path, "--out", tmp_path / "out"]
    assert run([*map(str, arguments), "--block", "99999999999999999999999"]) == 2
    err = capsys.readouterr().err
    assert "--block" in err and "10000000" in err and len(err.splitlines()) == 1


def table(path: Path, *images: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": list(images)}), path)


@pytest.mark.parametrize("where", ["a.png", "disc/a.png"])
def test_images_beside_parquet_are_not_passed_over(where: str, tmp_path: Path) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_bytes(b"")
    table(tmp_path / "index.parquet", "b.png")
    with pytest.raises(VisionADError, match=f"name {tmp_path}/index.parquet"):
        read_source(str(tmp_path))
    assert read_source(str(tmp_path / "index.parquet")).images.to_pylist() == ["b.png"]


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_results_below_a_source_are_no_source(url: str, tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", "a.png")
    table(tmp_path / "deep" / "b.parquet", "b.png")
    table(tmp_path / "out" / "run=12" / "part-00000000.parquet", "a.png")
    (tmp_path / "out" / "run=12" / "run.json").write_text("{}")
    assert read_source(url.format(tmp_path)).images.to_pylist() == ["a.png", "b.png"]
    results = tmp_path / "out" / "run=12"
    assert read_source(url.format(results)).images.to_pylist() == ["a.png"]  # of a run that is named
