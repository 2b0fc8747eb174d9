"""Users, roles and sessions of the page. They live in the front, so a page process that is replaced logs nobody out."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import VisionADError
from ...formats.files import atomic_write

Role = Literal["operator", "viewer", "setter", "admin"]
ROLES: tuple[Role, ...] = ("operator", "viewer", "setter", "admin")
LANGUAGES = ("en", "de", "zh")
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
"""32 MiB and about 0.1 s a password (RFC 7914)."""
PANEL_IDLE_S, IDLE_S = 15 * 60.0, 8 * 3600.0
"""A person at the panel falls back to the operator after the first; other sessions end after the second."""
MAX_SESSIONS = 200
_FREE_ATTEMPTS, _MAX_PAUSE_S = 3, 60.0
MIN_PASSWORD = 8
_NO_NAMES = ("panel", "station", ".", "..")
"""The first two are no persons; the others, and a slash, cannot be part of an address."""


class Refused(Exception):
    """A command was refused. ``code`` is a word for programs, ``values`` fill the page's sentence."""

    def __init__(self, code: str, message: str, **values: Any) -> None:
        super().__init__(message)
        self.code, self.values = code, values


@dataclass
class Session:
    """Someone at a page.

    Attributes:
        name: of the user; ``panel`` for an operator without one.
        role: see :data:`ROLES`.
        panel: whether the page is the one of the panel.
        used: monotonic seconds of the last action.
    """

    name: str
    role: Role
    panel: bool
    used: float = field(default_factory=lambda: time.monotonic())


class Users:
    """Users in a file, the panel's token, the code of the first start, and sessions in memory.

    Args:
        folder: gets ``users.json`` and ``panel-token``, which only their owner can read.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._token_path = folder / "users.json", folder / "panel-token"
        self._lock = threading.Lock()  # what is checked is what is written: hashing takes long, and is done before
        self._users: dict[str, dict[str, str]] = {}
        if self._path.is_file():
            try:
                self._users = json.loads(self._path.read_text(encoding="utf-8"))["users"]
            except (ValueError, KeyError, OSError) as exc:
                raise VisionADError(
                    f"{self._path}: expected the users of the page: {exc}; mend it, or delete it to begin anew"
                ) from None
        self._sessions: dict[str, Session] = {}
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}
        self.code = "" if self._users else secrets.token_hex(4)
        self._token = ""
        self._renew_token()

    @property
    def panel_token(self) -> str:
        """Token by which a panel's browser logs in, once; its file has it too."""
        return self._token

    @property
    def token_path(self) -> Path:
        """File with the panel's token."""
        return self._token_path

    # -- sessions -----------------------------------------------------------------------------------------------------

    def session(self, key: str) -> Session | None:
        """Return the session of a cookie; ``None`` without one, or if it ended."""
        found = self._sessions.get(_digest(key)) if key else None
        if found is None:
            return None
        idle = time.monotonic() - found.used
        if found.panel and found.name != "panel" and idle > PANEL_IDLE_S:
            found.name, found.role = "panel", "operator"
        elif not found.panel and idle > IDLE_S:
            del self._sessions[_digest(key)]
            return None
        return found

    def login_panel(self, token: str) -> str:
        """Open a session of the panel. The token is good once; a new one is written.

        Raises:
            Refused: It is another one.
        """
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise Refused("panel_token", "the panel's token was used already or is wrong; read it again from its file")
        self._renew_token()
        return self._open(Session("panel", "operator", True))

    def login_code(self, code: str, name: str, password: str) -> str:
        """Make the first user, an admin, by the code that the service printed.

        Raises:
            Refused: There is a user already, the code is another one, or name or password are not accepted.
        """
        self._check_pause("code", "")
        self._check_code(code)
        user = _new_user(name, password, "admin")
        with self._lock:
            self._check_code(code)  # another one may have been first
            self._put(name, user)
            self.code = ""
            return self._open(Session(name, "admin", False))

    def login(self, name: str, password: str, address: str, key: str = "") -> str:
        """Open a session of a user. It takes 0.1 s.

        Args:
            name: of the user.
            password: in clear.
            address: where the request came from: repeated failures of one name from one address are slowed, nobody is locked out.
            key: of the session before it, which ends; a panel stays a panel.

        Raises:
            Refused: Name or password are wrong, or it was tried too often.
        """
        self._check_pause(name, address)
        user = self._users.get(name)
        expected = user["hash"] if user else "0" * 128
        got = _hash(password, user["salt"] if user else "00" * 16)
        if user is None or not hmac.compare_digest(expected, got):
            self._note_failure(name, address)
            raise Refused("password", "name or password are wrong")
        self._failures.pop((name, address), None)
        with self._lock:
            if self._users.get(name) is not user:
                raise Refused("password", "name or password are wrong")  # since a moment ago
            before = self._sessions.pop(_digest(key), None) if key else None
            panel = before is not None and before.panel
            return self._open(Session(name, user["role"], panel))  # type: ignore[arg-type]

    def logout(self, key: str) -> None:
        """End a session. The panel falls back to its operator."""
        found = self._sessions.get(_digest(key))
        if found is None:
            return
        if found.panel and found.name != "panel":
            found.name, found.role = "panel", "operator"
        else:
            del self._sessions[_digest(key)]

    # -- users --------------------------------------------------------------------------------------------------------

    def all(self) -> list[dict[str, str]]:
        """Return names and roles."""
        return [{"name": name, "role": user["role"]} for name, user in sorted(self._users.items())]

    def add(self, name: str, password: str, role: str) -> None:
        """Add a user, or give one another password or role.

        Raises:
            Refused: Name, password or role are not accepted, or it would take the last admin away.
        """
        user = _new_user(name, password, role)
        with self._lock:
            if role != "admin":
                self._keep_an_admin(name)
            self._put(name, user)

    def remove(self, name: str) -> None:
        """Delete a user and end their sessions.

        Raises:
            Refused: There is no such user, or it is the last admin.
        """
        with self._lock:
            if name not in self._users:
                raise Refused("no_user", f"there is no user {name!r}")
            self._keep_an_admin(name)
            del self._users[name]
            self._end_sessions(name)
            self._save()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_code(self, code: str) -> None:
        if not self.code or not hmac.compare_digest(code.strip().lower().encode(), self.code.encode()):
            self._note_failure("code", "")
            raise Refused("first_code", "the code is wrong, or a user was made already; it stands in the station's log")

    def _put(self, name: str, user: dict[str, str]) -> None:
        self._users[name] = user
        self._end_sessions(name)
        self._save()

    def _keep_an_admin(self, name: str) -> None:
        others = [n for n, user in self._users.items() if user["role"] == "admin" and n != name]
        if not others and name in self._users and self._users[name]["role"] == "admin":
            raise Refused("last_admin", f"{name!r} is the last admin; add another one first")

    def _end_sessions(self, name: str) -> None:
        self._sessions = {key: one for key, one in self._sessions.items() if one.name != name}

    def _open(self, session: Session) -> str:
        key = secrets.token_urlsafe(32)
        self._sessions[_digest(key)] = session
        while len(self._sessions) > MAX_SESSIONS:
            oldest = min(self._sessions, key=lambda one: self._sessions[one].used)
            del self._sessions[oldest]
        return key

    def _renew_token(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._write(self._token_path, self._token.encode())

    def _save(self) -> None:
        self._write(self._path, json.dumps({"users": self._users}, indent=1).encode())

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data, private=True)

    def _check_pause(self, name: str, address: str) -> None:
        count, last = self._failures.get((name, address), (0, 0.0))
        pause = min(_MAX_PAUSE_S, 2.0 ** (count - _FREE_ATTEMPTS)) if count >= _FREE_ATTEMPTS else 0.0
        left = last + pause - time.monotonic()
        if left > 0:
            raise Refused("too_often", f"tried too often; try again in {left:.0f} s", seconds=max(1, round(left)))

    def _note_failure(self, name: str, address: str) -> None:
        now = time.monotonic()
        self._failures = {key: one for key, one in self._failures.items() if now - one[1] < 600}
        count = self._failures.get((name, address), (0, 0.0))[0]
        self._failures[name, address] = (count + 1, now)


def may(session: Session | None, roles: Mapping[str, tuple[str, ...]], command: str) -> None:
    """Check that a session may give a command.

    Raises:
        Refused: Nobody is logged in (``no_session``), or the role may not (``role_missing``).
    """
    allowed = roles.get(command)
    if allowed is None:
        raise Refused("unknown_command", f"there is no command {command!r}")
    if session is None:
        raise Refused("no_session", "log in first")
    if session.role not in allowed:
        raise Refused(
            "role_missing", f"{command} needs one of the roles {', '.join(allowed)}; this is {session.role}",
            role=session.role, needs=list(allowed),
        )  # fmt: skip


def _new_user(name: str, password: str, role: str) -> dict[str, str]:
    """Return what is kept of a user. It takes 0.1 s.

    Raises:
        Refused: Name, password or role are not accepted.
    """
    if not 1 <= len(name) <= 60 or not name.isprintable() or "/" in name or name in _NO_NAMES:
        no_names = ", ".join(_NO_NAMES)
        raise Refused("user_name", f"expected a name of 1 to 60 signs without /, and none of {no_names}; got {name!r}")
    if len(password) < MIN_PASSWORD:
        raise Refused("short_password", f"expected a password of at least {MIN_PASSWORD} signs", least=MIN_PASSWORD)
    if role not in ROLES:
        raise Refused("role", f"expected a role, one of {', '.join(ROLES)}, got {role!r}")
    salt = secrets.token_hex(16)
    return {"role": role, "salt": salt, "hash": _hash(password, salt)}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _hash(password: str, salt: str) -> str:
    return hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), dklen=64, **_SCRYPT).hex()
