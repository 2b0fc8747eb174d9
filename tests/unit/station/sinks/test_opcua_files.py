"""Users and nodeset of the OPC UA sink: hashes, guessing, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.sink import SINKS
from visionad_runtime.station.sinks.opcua import nodeset
from visionad_runtime.station.sinks.opcua.settings import OpcUaSettings
from visionad_runtime.station.sinks.opcua.users import Passwords, hash_password, matches, read_users

MODULE = "visionad_runtime.station.sinks.opcua.users"


def test_a_hash_is_salted_and_matches_its_password_only() -> None:
    first, second = hash_password("pä ss"), hash_password("pä ss")
    assert first != second
    assert matches("pä ss", first) and matches("pä ss", second)
    assert not matches("pass", first)


def test_guessing_is_slowed_down_and_known_users_still_enter() -> None:
    now = [0.0]
    passwords = Passwords({"plc": hash_password("right"), "mes": hash_password("other")}, lambda: now[0])
    assert passwords.right("plc", "right")
    assert not passwords.right("plc", "wrong")
    assert passwords.right("plc", "right")  # it is known
    assert not passwords.right("mes", "other")  # it is not, and a guess came a moment ago
    now[0] = 1.5
    assert passwords.right("mes", "other")
    assert not passwords.right("mes", "right")
    assert not passwords.right("nobody", "right")


def test_the_command_prints_a_line_that_is_read(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    done = subprocess.run([sys.executable, "-m", MODULE, "plc"], input="right\n", capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    (tmp_path / "users.yaml").write_text(done.stdout)
    assert Passwords(read_users(tmp_path / "users.yaml")).right("plc", "right")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "cannot be read"),
        ("", "got none"),
        ("plc: secret", "a hash for plc"),
        ("a: b: c", "no YAML"),
        ("- x", "got none"),
    ],
)
def test_bad_users_files_are_one_line(tmp_path: Path, text: str | None, error: str) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "users.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(VisionADError, match=error):
        read_users(path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "users, certificate, key too, or security: none"),
        ({"security": "none", "users": "u.yaml"}, "expected no users"),
        ({"users": "u", "certificate": "c.pem", "key": "k.pem"}, r"ending \.der"),
        ({"users": "u", "certificate": "c.der", "key": "k.key"}, r"ending \.pem"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        OpcUaSettings(kind="opcua", **settings)


def test_without_the_nodeset_it_says_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("asyncua")
    monkeypatch.setattr(nodeset, "PATH", tmp_path / "none.xml")
    leaf: Any = SINKS.load("opcua")
    text = leaf("plc", OpcUaSettings(kind="opcua", security="none")).missing()
    assert text is not None and nodeset.COMMAND in text


def test_another_nodeset_is_refused_and_an_npm_that_is_missing_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.xml").write_text('<Definition Name="1:ConfigurationIdDataType" />')
    with pytest.raises(VisionADError, match="not the nodeset"):
        nodeset.mended(tmp_path / "other.xml")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nodeset, "find_spec", lambda _: None)
    with pytest.raises(VisionADError, match="npm is not installed"):
        nodeset.fetch(tmp_path / "data" / "new.xml")


@pytest.mark.skipif(not nodeset.PATH.is_file(), reason=f"no nodeset: {nodeset.COMMAND}")
def test_the_three_empty_definitions_are_filled() -> None:
    mended = nodeset.mended()
    assert not any(f'<Definition Name="1:{name}" />' in mended for name in nodeset.EMPTY)
    assert mended.count('<Field Name="Id" DataType="TrimmedString">') - nodeset.PATH.read_text("utf-8").count(
        '<Field Name="Id" DataType="TrimmedString">'
    ) == len(nodeset.EMPTY)
