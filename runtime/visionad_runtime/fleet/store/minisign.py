"""Keys and signatures in minisign's format, so that ``minisign -Vm FILE -p visionad.pub`` checks them too.

A signature covers the BLAKE2b-512 digest of the data (minisign's ``ED``), and a second one covers the first and the trusted
comment. Keys are Ed25519 (https://jedisct1.github.io/minisign/).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import VisionADError
from ...formats.files import atomic_write

KEY_ALGORITHM, PREHASHED, LEGACY = b"Ed", b"ED", b"Ed"
NO_KDF, CHECKSUM = b"\0\0", b"B2"
_SECRET_BYTES = 158
_PUBLIC_BYTES = 42
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "


class SignatureError(VisionADError):
    """A signature is missing, damaged, or by no key that is pinned."""


class PublicKey(NamedTuple):
    """A key that signatures are checked with.

    Attributes:
        key_id: 8 bytes.
        key: Ed25519 public key, 32 bytes.
    """

    key_id: bytes
    key: bytes

    @property
    def name(self) -> str:
        """Identity as minisign prints it."""
        return self.key_id[::-1].hex().upper()


class SecretKey(NamedTuple):
    """A key that signs.

    Attributes:
        key_id: 8 bytes.
        seed: Ed25519 private key, 32 bytes.
    """

    key_id: bytes
    seed: bytes

    @property
    def public(self) -> PublicKey:
        """The key that checks its signatures."""
        ed25519, serialization = _library()
        key = ed25519.Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return PublicKey(self.key_id, raw)


def generate(secret_file: Path, public_file: Path) -> SecretKey:
    """Make a key pair. The secret file has no password and can be read by its owner alone.

    Args:
        secret_file: new file for the secret key.
        public_file: new file for the public key.

    Raises:
        VisionADError: A file exists already or cannot be written, or cryptography is not installed.
    """
    key = SecretKey(secrets.token_bytes(8), secrets.token_bytes(32))
    public = key.public
    pair = key.seed + public.key
    checksum = hashlib.blake2b(KEY_ALGORITHM + key.key_id + pair, digest_size=32).digest()
    packed = KEY_ALGORITHM + NO_KDF + CHECKSUM + bytes(48) + key.key_id + pair + checksum
    secret = f"{_UNTRUSTED}minisign encrypted secret key\n{_encode(packed)}\n"
    opened = f"{_UNTRUSTED}minisign public key {public.name}\n{_encode(KEY_ALGORITHM + public.key_id + public.key)}\n"
    for path in (secret_file, public_file):
        if path.exists():
            raise VisionADError(f"{path} exists already; choose another folder with --out, or delete it")
    try:
        for path, text in ((secret_file, secret), (public_file, opened)):
            atomic_write(path, text.encode(), private=path == secret_file)
    except VisionADError:
        secret_file.unlink(missing_ok=True)  # neither stands alone
        raise
    return key


def read_secret(path: Path) -> SecretKey:
    """Read a secret key without a password.

    Raises:
        VisionADError: The file is missing, is no secret key, or has a password.
    """
    packed = _decode_line(path, 1, _SECRET_BYTES, "a secret key of `visionad keygen`")
    if packed[2:4] != NO_KDF:
        raise VisionADError(f"{path} has a password; make one without, by `visionad keygen` or `minisign -G -W`")
    key_id, pair, checksum = packed[54:62], packed[62:126], packed[126:]
    good = hashlib.blake2b(KEY_ALGORITHM + key_id + pair, digest_size=32).digest()
    if packed[:2] != KEY_ALGORITHM or checksum not in (good, bytes(32)):
        raise VisionADError(f"{path} is damaged: its checksum differs; restore it from a backup")
    key = SecretKey(key_id, pair[:32])
    if key.public.key != pair[32:]:
        raise VisionADError(f"{path} is damaged: its two halves do not belong together; restore it from a backup")
    return key


def read_public(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        VisionADError: The file is missing or is no public key.
    """
    packed = _decode_line(path, 1, _PUBLIC_BYTES, "a public key of `visionad keygen`")
    if packed[:2] != KEY_ALGORITHM:
        raise VisionADError(f"{path}: expected a public key of `visionad keygen`, got another kind of key")
    return PublicKey(packed[2:10], packed[10:])


def sign(data: bytes, key: SecretKey, comment: str) -> bytes:
    """Return the signature file of data.

    Args:
        data: what is signed.
        key: the signing key.
        comment: one line that is signed too.
    """
    ed25519, _ = _library()
    private = ed25519.Ed25519PrivateKey.from_private_bytes(key.seed)
    signature = private.sign(hashlib.blake2b(data).digest())
    packed = _encode(PREHASHED + key.key_id + signature)
    whole = _encode(private.sign(signature + comment.encode()))
    return f"{_UNTRUSTED}signature of VisionAD\n{packed}\n{_TRUSTED}{comment}\n{whole}\n".encode()


def verify(data: bytes, signature: bytes, keys: Sequence[PublicKey], what: str) -> PublicKey:
    """Check a signature against pinned keys.

    Args:
        data: what was signed.
        signature: signature file.
        keys: keys that are trusted.
        what: name of the data, for messages.

    Returns:
        The key that signed.

    Raises:
        SignatureError: The signature is damaged, does not fit the data, or is by another key.
    """
    ed25519, _ = _library()
    try:
        _, packed_line, trusted, whole_line = signature.decode().splitlines()[:4]
        packed, whole = base64.b64decode(packed_line, validate=True), base64.b64decode(whole_line, validate=True)
        if not trusted.startswith(_TRUSTED) or len(packed) != 74 or len(whole) != 64:
            raise ValueError
    except (ValueError, binascii.Error, UnicodeDecodeError):
        raise SignatureError(f"{what}: its signature is damaged; nothing was changed") from None
    algorithm, key_id, made = packed[:2], packed[2:10], packed[10:]
    key = next((one for one in keys if one.key_id == key_id), None)
    if key is None:
        pinned = ", ".join(one.name for one in keys)
        raise SignatureError(
            f"{what}: expected a signature by key {pinned}, got one by {key_id[::-1].hex().upper()}; nothing was changed"
        )
    from cryptography.exceptions import InvalidSignature

    public = ed25519.Ed25519PublicKey.from_public_bytes(key.key)
    signed = data if algorithm == LEGACY else hashlib.blake2b(data).digest()
    with contextlib.suppress(InvalidSignature):
        public.verify(made, signed)
        public.verify(whole, made + trusted.removeprefix(_TRUSTED).encode())
        return key
    raise SignatureError(
        f"{what}: it or its signature was changed after key {key.name} signed it; nothing was changed here"
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode_line(path: Path, line: int, size: int, expected: str) -> bytes:
    try:
        data = base64.b64decode(path.read_text("ascii").splitlines()[line], validate=True)
    except OSError as exc:
        raise VisionADError(f"{path} cannot be read: {exc.strerror}; expected {expected}") from None
    except (ValueError, IndexError):
        raise VisionADError(f"{path}: expected {expected}") from None
    if len(data) != size:
        raise VisionADError(f"{path}: expected {expected}")
    return data


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise VisionADError("signatures take cryptography: pip install 'visionad[fleet]'") from None
    return ed25519, serialization
