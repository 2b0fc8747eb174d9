"""The station file: every mistake with file and line, all at once, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.leaf import LeafSettings
from visionad_runtime.station.settings import StationFileError, read_station
from visionad_runtime.station.template import TEMPLATE

GOOD = """\
station: press-3
model: model
bank: bank
cameras:
  top: {kind: folder, path: images}
  side: {kind: folder, path: images}
recipes:
  1: {name: gear, class: gear}
  2: {name: bolt, class: {top: bolt}, cameras: [top], deadline_ms: 90}
sinks:
  - {kind: tcp, port: 5020}
"""


def read(tmp_path: Path, text: str, **options: bool) -> object:
    path = tmp_path / "station.yaml"
    path.write_text(text)
    return read_station(path, **options)


def test_a_good_file(tmp_path: Path) -> None:
    station = read_station(_write(tmp_path, GOOD))
    assert station.settings.model == tmp_path / "model"
    assert list(station.cameras) == ["top", "side"] and list(station.sinks) == ["tcp"]
    assert (
        station.settings.recipes[2].class_of("top") == "bolt" and station.settings.recipes[2].class_of("side") is None
    )
    assert station.cameras["top"]._settings.path == tmp_path / "images"  # type: ignore[attr-defined]
    assert len({recipe.digest() for recipe in station.settings.recipes.values()}) == 2


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(text)
    return path


def test_the_template_is_a_good_file(tmp_path: Path) -> None:
    assert read_station(_write(tmp_path, TEMPLATE)).settings.station == "station-1"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("path: images}\n  side", "pth: images}\n  side", "station.yaml:5: cameras.top.pth: unknown key; did you mean 'path'?"),
        ("deadline_ms: 90", "deadline: 90", "station.yaml:9: recipes.2.deadline: unknown key; did you mean 'deadline_ms'?"),
        ("deadline_ms: 90", "deadline_ms: -1", "station.yaml:9: recipes.2.deadline_ms: Input should be greater than 0"),
        ("kind: tcp", "kind: tpc", "station.yaml:11: sinks.0: unknown sink kind 'tpc'"),
        ("kind: tcp", "kind: tpc", "did you mean 'tcp'?"),
        ("{kind: folder, path: images}\n  side", "{path: images}\n  side", "cameras.top: expected a kind, one of arrivals, folder"),
        ("cameras: [top]", "cameras: [bottom]", "recipe 2 names camera 'bottom'; the station has side, top"),
        ("class: {top: bolt}", "class: {side: bolt}", "recipe 2 names camera 'side', which it does not use; its cameras are top"),
        ("cameras: [top],", "cameras: [top], code: {camera: side},", "recipe 2 names camera 'side', which it does not use"),
        ("class: gear}", "class: gear, code: {camera: bottom}}", "recipe 1 names camera 'bottom'; the station has side, top"),
        ("station: press-3\n", "", "station.yaml:1: station: missing; it is required"),
        ("station: press-3", "station: press-3\nstation: b", "station.yaml:2: not YAML: key 'station' is given twice"),
        ("port: 5020", "port: !env NO_SUCH_NAME", "station.yaml:11: not YAML: environment variable NO_SUCH_NAME is not set"),
        ("port: 5020", "port: 99999", "station.yaml:11: sinks.0.port: Input should be less than or equal to 65535"),
        ("recipes:", "recipes: [", "not YAML"),
        ("deadline_ms: 90", "deadline_ms: true", "station.yaml:9: recipes.2.deadline_ms: expected a number, got true or false"),
        ("port: 5020", "port: yes", "station.yaml:11: sinks.0.port: expected a number, got true or false"),
        ("recipes:", "archive: {folder: a, max_gb: on}\nrecipes:", "station.yaml:7: archive.max_gb: expected a number"),
        ("path: images}\n  side", "path: images, delay_ms: no}\n  side", "station.yaml:5: cameras.top.delay_ms: expected a number"),
        ("  1: {", "  true: {", "station.yaml:8: not YAML: key 'true' means true; put a name in quotes"),
        ("  side:", "  off:", "station.yaml:6: not YAML: key 'off' means false; put a name in quotes"),
        ("  2: {", "  01: {", "station.yaml:9: not YAML: key '01' is given twice"),
        ("  2: {", "  0x1: {", "station.yaml:9: not YAML: key '0x1' is given twice"),
        ("  2: {", "  1.0: {", "station.yaml:9: not YAML: key '1.0' is given twice"),
        ("  2: {", "  '01': {", "station.yaml:7: recipes: expected each number once, got 1, '01'"),
        ("  2: {name: bolt", "  02: {nam: bolt", "station.yaml:9: recipes.2.name: missing"),
        ("press-3", "press\x00", "station.yaml:1: not YAML: the character U+0000 is not allowed"),
        ("bank: bank", "bank: ba\x07nk", "station.yaml:3: not YAML: the character U+0007 is not allowed"),
        ("recipes:", "? [a, b]\n: 1\nrecipes:", "station.yaml:7: not YAML: expected a key that is one word or number"),
        ("recipes:", "{a: 1}: 3\nrecipes:", "station.yaml:7: not YAML: expected a key that is one word or number"),
        ("bank: bank", "bank: 2026-13-45", "station.yaml:3: not YAML: '2026-13-45' is no number or date that can be read"),
        ("bank: bank", "bank: !!timestamp x", "station.yaml:3: not YAML: 'x' is no number or date that can be read"),
        ("deadline_ms: 90", f"deadline_ms: {'9' * 5000}", f"station.yaml:9: not YAML: '{'9' * 37}...' is no number or date"),
        ("deadline_ms: 90", f"deadline_ms: {'9' * 4000}", "station.yaml:9: recipes.2.deadline_ms: "),
        ("bank: bank", "bank: " + "[" * 3000 + "]" * 3000, "not YAML: lists and keys are nested too deeply"),
        ("{kind: folder, path: images}\n  side", "{kind: http}\n  side", "cameras.top: its images come to the page's address"),
        ("{kind: folder, path: images}\n  side", "{kind: http, token: a}\n  side", "top.token: expected 16 characters or more"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(VisionADError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+30"])
@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("sinks:", "deadline_ms: VALUE\nsinks:", "deadline_ms"),
        ("sinks:", "ack_ms: VALUE\nsinks:", "ack_ms"),
        ("sinks:", "skew_ms: VALUE\nsinks:", "skew_ms"),
        ("sinks:", "retention_days: VALUE\nsinks:", "retention_days"),
        ("sinks:", "archive: {folder: a, days: VALUE}\nsinks:", "archive.days"),
        ("sinks:", "archive: {folder: a, max_gb: VALUE}\nsinks:", "archive.max_gb"),
        ("deadline_ms: 90", "deadline_ms: VALUE", "recipes.2.deadline_ms"),
        ("path: images}", "path: images, delay_ms: VALUE}", "cameras.top.delay_ms"),
        ("kind: folder, path: images}", "kind: arrivals, path: a, journal: b, latency_ms: VALUE}", "cameras.top.latency_ms"),
        ("kind: folder, path: images}", "kind: stream, source: 0, max_age_ms: VALUE}", "cameras.top.max_age_ms"),
        ("kind: folder, path: images}", "kind: gige, address: 10.0.0.7, exposure_us: VALUE}", "cameras.top.exposure_us"),
        ("{kind: tcp, port: 5020}", "{kind: modbus, heartbeat_s: VALUE}", "sinks.0.heartbeat_s"),
        ("{kind: tcp, port: 5020}", "{kind: mqtt, host: a, topic: b, timeout_s: VALUE}", "sinks.0.timeout_s"),
        ("{kind: tcp, port: 5020}", "{kind: webhook, url: 'http://a', timeout_s: VALUE}", "sinks.0.timeout_s"),
    ],
)  # fmt: skip
def test_times_and_sizes_that_are_no_numbers_or_absurd(
    tmp_path: Path, old: str, new: str, key: str, value: str
) -> None:
    assert old in GOOD
    with pytest.raises(StationFileError) as caught:
        read(tmp_path, GOOD.replace(old, new.replace("VALUE", value), 1))
    (line,) = caught.value.problems
    assert f"{key}: Input should be " in line


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_no_leaf_takes_a_number_that_is_none(value: str) -> None:
    class Settings(LeafSettings):
        gain_db: float

    with pytest.raises(ValidationError, match="finite number"):
        Settings(kind="theirs", gain_db=float(value))


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StationFileError) as caught:
        read(tmp_path, GOOD.replace("path: images", "pth: images").replace("port: 5020", "prt: 1"))
    lines = caught.value.problems
    assert len([line for line in lines if "unknown key" in line]) == 3
    assert all(line.startswith(str(tmp_path / "station.yaml:")) for line in lines)


def test_simulate_replaces_cameras_by_their_folders(tmp_path: Path) -> None:
    text = GOOD.replace("top: {kind: folder, path: images}", "top: {kind: gige, address: 10.0.0.7, simulate: images}")
    station = read(tmp_path, text, simulate=True)
    assert station.cameras["top"]._settings.kind == "folder"  # type: ignore[attr-defined]


def test_keys_that_only_look_alike(tmp_path: Path) -> None:
    text = GOOD.replace("  side:", "  '1': {kind: folder, path: images}\n  '01':").replace("  1: {", "  1: &gear {")
    text = text.replace("  2: {", "  3: {<<: *gear, name: other}\n  2: {")
    station = read(tmp_path, text)
    assert list(station.cameras) == ["top", "1", "01"]  # type: ignore[attr-defined]
    assert station.settings.recipes[3].class_name == "gear"  # type: ignore[attr-defined]


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(VisionADError, match="`visionad station init"):
        read_station(tmp_path / "none.yaml")
    with pytest.raises(VisionADError, match="expected keys such as station"):
        read(tmp_path, "")
