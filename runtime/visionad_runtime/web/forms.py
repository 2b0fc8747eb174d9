"""Images inside something else: multipart forms are opened, for the rest it is said how to send the image."""

from __future__ import annotations

import re
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from ..errors import ImageError

HOW_TO_SEND = (
    "send the image file's bytes as the body (curl --data-binary @part.png), or as the one file of a multipart form "
    "(curl -F file=@part.png)"
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+=*\s*")
_FORM = re.compile(rb"[\w.%+\-]+=")


class FormFile(NamedTuple):
    """The file of a form, and its name there."""

    data: bytes
    name: str


class _Part:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.data = bytearray()
        self.field, self.value = bytearray(), bytearray()

    def end_header(self) -> None:
        raw = bytes(self.value)
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
        self.headers[self.field.decode("latin-1").strip().lower()] = value.strip()
        self.field, self.value = bytearray(), bytearray()

    def parameter(self, name: str) -> str | None:
        return _parameter(self.headers.get("content-disposition", ""), name)


def is_multipart(content_type: str) -> bool:
    """Whether a body of this type is a multipart form."""
    return content_type.split(";", 1)[0].strip().lower() == "multipart/form-data"


def form_file(body: bytes, content_type: str) -> FormFile:
    """Return the one file of a multipart form.

    Args:
        body: of the request, whole.
        content_type: of the request.

    Raises:
        ImageError: no form, cut off, not exactly one part, or a part that is encoded.
    """
    parts, complete = _parse(body, content_type)
    if not complete:
        raise ImageError(f"the multipart form is cut off after {len(body)} bytes; send it again")
    fields = [part.parameter("name") or "" for part in parts if part.parameter("filename") is None]
    if len(parts) > 1 and fields:
        raise ImageError(
            f"the form has a field {fields[0]!r}; parameters go into the URL, such as ?class=gear&name=part.png, "
            "and the form holds the image alone"
        )
    if len(parts) != 1:
        raise ImageError(f"expected one file in the form, got {len(parts)}; send one request per image")
    (part,) = parts
    encoding = part.headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise ImageError(f"the form's file is encoded as {encoding}; send its bytes as they are")
    name = re.split(r"[/\\]", part.parameter("filename") or "")[-1]
    return FormFile(bytes(part.data), "".join(c if c.isprintable() else "?" for c in name))


def _parse(body: bytes, content_type: str) -> tuple[list[_Part], bool]:
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise ImageError(f"expected a boundary in Content-Type {content_type!r}; let your HTTP library set that header")
    parts: list[_Part] = []
    complete = False

    def end() -> None:
        nonlocal complete
        complete = True

    try:
        MultipartParser(
            boundary.encode("latin-1", "replace"),
            {
                "on_part_begin": lambda: parts.append(_Part()),
                "on_header_field": lambda data, start, stop: parts[-1].field.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: parts[-1].value.extend(data[start:stop]),
                "on_header_end": lambda: parts[-1].end_header(),
                "on_part_data": lambda data, start, stop: parts[-1].data.extend(data[start:stop]),
                "on_end": end,
            },
        ).write(body)
    except FormParserError as exc:
        raise ImageError(f"the multipart form is malformed ({exc}); {HOW_TO_SEND}") from None
    return parts, complete


def _parameter(header: str, name: str) -> str | None:
    """A parameter of a header, quoted, or encoded by RFC 2231 (``filename*=UTF-8''M%C3%BCller.png``).

    Raises:
        ImageError: it is encoded in another way.
    """
    message = Message()
    message["header"] = " ".join(header.split())
    try:
        value = message.get_param(name, header="header")
        return None if value is None else collapse_rfc2231_value(value)
    except (TypeError, ValueError):  # parts that are numbered amiss; text that its character set does not hold
        raise ImageError(
            f"the form's parameter {name} cannot be read in {header[:80]!r}; expected {name}=\"…\" or {name}*=UTF-8''…"
        ) from None


def check_encoding(content_encoding: str) -> None:
    """Check that a body is sent as it is.

    Raises:
        ImageError: it is compressed.
    """
    if content_encoding.strip().lower() not in ("", "identity"):
        raise ImageError(
            f"Content-Encoding {content_encoding!r} is not read: image files are compressed already; send the body without it"
        )


def hint(body: bytes, content_type: str) -> str | None:
    """Say what a body is that is no image.

    Args:
        body: that could not be decoded.
        content_type: of the request; many clients send a wrong one.

    Returns:
        What it is and how to send the image, ``None`` if that is not known.
    """
    start = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    kind = content_type.split(";", 1)[0].strip().lower()
    what = None
    if start.startswith(b"\x89PNG") and not start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "is a PNG whose line ends were changed on the way; send it in binary (curl --data-binary, not --data)"
    if start[:5].lower() == b"data:":
        what = "a data URL"
    elif start.startswith(b"\x1f\x8b"):
        what = "compressed by gzip"
    elif start[:1] in b"{[\"'" and start[:1]:
        what = "JSON"
    elif start.startswith(b"--") and b"content-disposition" in start.lower():
        what = f"a multipart form sent as {kind or 'no type'}, without the boundary"
    elif start.startswith(b"<"):
        what = "XML or HTML"
    elif len(body) >= 16 and _BASE64.fullmatch(body[:4096].rstrip(b"=")):
        what = "base64 or other text"
    elif _FORM.match(start):
        what = "an urlencoded form"
    elif kind == "application/json" or kind.startswith("multipart/"):
        what = f"{kind}"
    return None if what is None else f"expected an image, got a body that is {what}; {HOW_TO_SEND}"
