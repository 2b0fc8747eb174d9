"""Users, roles and sessions of the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.page import users as page_users
from visionad_runtime.station.page.users import Refused, Users, may

PASSWORD = "correct horse"


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Users:
    monkeypatch.setattr(page_users, "_SCRYPT", {"n": 16, "r": 8, "p": 1})  # quick
    return Users(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(page_users.time, "monotonic", lambda: now[0])
    return now


def test_the_first_user_takes_the_code_and_it_is_good_once(users: Users, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="code is wrong"):
        users.login_code("00000000", "anna", PASSWORD)
    key = users.login_code(users.code.upper(), "anna", PASSWORD)
    session = users.session(key)
    assert session is not None and (session.name, session.role, session.panel) == ("anna", "admin", False)
    with pytest.raises(Refused):
        users.login_code("", "eve", PASSWORD)
    assert Users(tmp_path).code == ""
    assert PASSWORD not in (tmp_path / "users.json").read_text()


def test_sessions_are_kept_as_digests_and_end(users: Users, clock: list[float]) -> None:
    users.add("anna", PASSWORD, "setter")
    key = users.login("anna", PASSWORD, "10.0.0.1")
    assert key not in repr(users.__dict__)
    clock[0] += page_users.IDLE_S + 1
    assert users.session(key) is None


def test_a_panel_falls_back_to_its_operator(users: Users, clock: list[float]) -> None:
    users.add("anna", PASSWORD, "setter")
    panel = users.login_panel(users.panel_token)
    key = users.login("anna", PASSWORD, "127.0.0.1", panel)
    assert users.session(panel) is None  # rotated at the login
    session = users.session(key)
    assert session is not None and (session.name, session.role, session.panel) == ("anna", "setter", True)
    clock[0] += page_users.PANEL_IDLE_S + 1
    session = users.session(key)
    assert session is not None and (session.name, session.role) == ("panel", "operator")


def test_failures_are_slowed_by_name_and_address(users: Users, clock: list[float]) -> None:
    users.add("anna", PASSWORD, "setter")
    for _ in range(3):
        with pytest.raises(Refused, match="wrong"):
            users.login("anna", "guess", "10.0.0.9")
    with pytest.raises(Refused, match="too often"):
        users.login("anna", PASSWORD, "10.0.0.9")
    assert users.session(users.login("anna", PASSWORD, "10.0.0.1")) is not None
    clock[0] += 61
    assert users.session(users.login("anna", PASSWORD, "10.0.0.9")) is not None


@pytest.mark.parametrize(
    ("name", "password", "role", "code"),
    [("", PASSWORD, "admin", "user_name"), ("panel", PASSWORD, "admin", "user_name"), ("a", "short", "admin", "short_password"),
     ("a", PASSWORD, "god", "role"), ("a\n", PASSWORD, "admin", "user_name"), ("a/b", PASSWORD, "admin", "user_name"),
     ("..", PASSWORD, "admin", "user_name")],
)  # fmt: skip
def test_what_no_user_may_be(users: Users, name: str, password: str, role: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        users.add(name, password, role)
    assert refused.value.code == code
    assert users.all() == []


def test_the_last_admin_stays(users: Users) -> None:
    users.add("anna", PASSWORD, "admin")
    for change in (lambda: users.remove("anna"), lambda: users.add("anna", PASSWORD, "viewer")):
        with pytest.raises(Refused, match="last admin"):
            change()
    users.add("bert", PASSWORD, "admin")
    key = users.login("anna", PASSWORD, "10.0.0.1")
    users.remove("anna")
    assert users.session(key) is None


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Calls two functions at once: each waits in its hashing for the other's. Returns the codes of refusals."""

    def call(*work: Callable[[], object]) -> list[str]:
        meet, hashed = threading.Barrier(len(work), timeout=20), page_users._hash

        def slowly(password: str, salt: str) -> str:
            meet.wait()
            return hashed(password, salt)

        monkeypatch.setattr(page_users, "_hash", slowly)

        def code_of(one: Callable[[], object]) -> str:
            try:
                one()
            except Refused as exc:
                return exc.code
            return ""

        with ThreadPoolExecutor(len(work)) as pool:
            codes = sorted(pool.map(code_of, work))
        monkeypatch.setattr(page_users, "_hash", hashed)
        return codes

    return call


def test_two_admins_cannot_demote_each_other(users: Users, together: Callable[..., list[str]]) -> None:
    for name in ("anna", "bert"):
        users.add(name, PASSWORD, "admin")
    codes = together(*(lambda name=name: users.add(name, PASSWORD, "viewer") for name in ("anna", "bert")))
    assert codes == ["", "last_admin"]
    assert sorted(user["role"] for user in users.all()) == ["admin", "viewer"]


def test_the_code_makes_one_user(users: Users, together: Callable[..., list[str]]) -> None:
    code = users.code
    assert together(*(lambda name=name: users.login_code(code, name, PASSWORD) for name in ("anna", "eve"))) == [
        "",
        "first_code",
    ]
    assert len(users.all()) == 1


def test_who_is_removed_while_logging_in_is_not_let_in(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anna", "bert"):
        users.add(name, PASSWORD, "admin")
    hashed = page_users._hash

    def meanwhile(password: str, salt: str) -> str:
        users.remove("anna")
        return hashed(password, salt)

    monkeypatch.setattr(page_users, "_hash", meanwhile)
    with pytest.raises(Refused, match="wrong"):
        users.login("anna", PASSWORD, "10.0.0.1")


def test_a_broken_file_says_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(VisionADError, match="mend it, or delete it"):
        Users(tmp_path)


def test_roles_are_checked(users: Users) -> None:
    session = users.session(users.login_panel(users.panel_token))
    may(session, {"seen": ("operator",)}, "seen")
    for who, command, code in (
        (session, "users", "role_missing"),
        (None, "users", "no_session"),
        (session, "x", "unknown_command"),
    ):
        with pytest.raises(Refused) as refused:
            may(who, {"users": ("admin",)}, command)
        assert refused.value.code == code


def test_the_users_file_survives_a_restart(users: Users, tmp_path: Path) -> None:
    users.add("anna", PASSWORD, "setter")
    again = Users(tmp_path)
    assert again.all() == [{"name": "anna", "role": "setter"}]
    assert set(json.loads((tmp_path / "users.json").read_text())["users"]["anna"]) == {"role", "salt", "hash"}
