"""Text that every receiver can take: databases and JSON refuse the bytes of file names that are no UTF-8."""

from __future__ import annotations

import re

_UNDECODABLE = re.compile("[\ud800-\udfff]")


def plain(text: str, *, is_json: bool = False) -> str:
    """Return a text whose undecodable bytes, which Python keeps as lone surrogates, are written out: ``\\udcff``.

    Args:
        text: any text.
        is_json: whether it is JSON, which has the backslash twice: a reader then gets what the other receivers get.
    """
    slash = "\\\\" if is_json else "\\"
    return text if text.isascii() else _UNDECODABLE.sub(lambda found: f"{slash}u{ord(found[0]):04x}", text)
