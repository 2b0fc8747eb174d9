"""Users of the OPC UA server: a YAML file of names and password hashes.

``python -m visionad_runtime.station.sinks.opcua.users NAME`` asks for a password and prints the line of a user.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import hmac
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ....errors import VisionADError

N, R, P = 1 << 14, 8, 1
"""Cost of a hash: 16 MiB and some 50 ms."""
WAIT_S = 1.0
"""After a wrong password no other is computed for so long: guessing neither succeeds nor takes the processor."""


def hash_password(password: str) -> str:
    """Return a salted scrypt hash of a password, ``scrypt$N$R$P$SALT$HASH``."""
    salt = secrets.token_bytes(16)
    return "$".join(("scrypt", str(N), str(R), str(P), _text(salt), _text(_scrypt(password, salt, N, R, P))))


def matches(password: str, hashed: str) -> bool:
    """Return whether a password has this hash."""
    _, n, r, p, salt, digest = hashed.split("$")
    return hmac.compare_digest(_scrypt(password, _bytes(salt), int(n), int(r), int(p)), _bytes(digest))


def read_users(path: Path) -> dict[str, str]:
    """Return name → hash.

    Raises:
        VisionADError: The file cannot be read, has no user, or a line is no hash.
    """
    import yaml

    mend = f"write lines such as those that `python -m {__name__} NAME` prints"
    try:
        users = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise VisionADError(f"users file {path} cannot be read: {exc.strerror}; {mend}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise VisionADError(f"users file {path} is no YAML: {exc}; {mend}") from None
    if not isinstance(users, dict) or not users:
        raise VisionADError(f"users file {path}: expected lines NAME: HASH, got none; {mend}")
    for name, hashed in users.items():
        try:
            matches("", hashed)
        except (AttributeError, ValueError):
            raise VisionADError(f"users file {path}: expected a hash for {name}, got something else; {mend}") from None
    return {str(name): hashed for name, hashed in users.items()}


class Passwords:
    """Checks passwords. A password that was right once is known again without computing a hash.

    Args:
        users: name → hash.
        clock: seconds that only grow.
    """

    def __init__(self, users: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._users, self._clock = dict(users), clock
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()
        self._not_before = -WAIT_S

    def right(self, name: str, password: str) -> bool:
        """Return whether the password is that of the user."""
        mark = hmac.digest(self._key, f"{len(name)}:{name}:{password}".encode(), "sha256")
        if mark in self._known:
            return True
        if name not in self._users or self._clock() < self._not_before:
            return False
        if not matches(password, self._users[name]):
            self._not_before = self._clock() + WAIT_S
            return False
        self._known.add(mark)
        return True


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=1 << 27)


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.urlsafe_b64decode(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name} NAME")
    secret = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    sys.stdout.write(f"{sys.argv[1]}: {hash_password(secret)}\n")
