"""Text that every receiver can take: manifests, databases and JSON refuse the bytes of file names that are no UTF-8."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(text: str, *, is_json: bool = False) -> str:
    """Return a text that UTF-8 can hold: bytes of a name that are no UTF-8 become ``\\xNN``, other lone surrogates ``\\uNNNN``.

    Args:
        text: any text.
        is_json: whether it is JSON, which has the backslash twice: a reader then gets what the other receivers get.
    """
    slash = "\\\\" if is_json else "\\"

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"{slash}x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"{slash}u{code:04x}"

    return text if text.isascii() else _SURROGATE.sub(escape, text)
