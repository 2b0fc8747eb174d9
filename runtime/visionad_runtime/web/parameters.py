"""The parameters of a query: only those that an endpoint has, each once, in percent-encoded UTF-8."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Container
from urllib.parse import parse_qsl, unquote_to_bytes

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from .queue import RequestError

HOW_TO_ENCODE = "percent-encode names as UTF-8, such as M%C3%BCller for Müller and %25 for %"
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Parameters:
    """The parameters that each endpoint has, so that a misspelt one is refused and not passed over.

    Args:
        app: the endpoints. A query may hold only parameters that their OpenAPI description names.
        free: paths of routes that may be asked with any parameters, such as pages, whose scripts read them.
    """

    def __init__(self, app: FastAPI, *, free: Container[str] = ()) -> None:
        self._app, self._free = app, free
        self._known = {
            (path, method.upper()): tuple(p["name"] for p in facts.get("parameters", ()) if p["in"] == "query")
            for path, methods in app.openapi()["paths"].items()
            for method, facts in methods.items()
        }

    def check(self, scope: Scope) -> None:
        """Check the query of a request.

        Raises:
            RequestError: It is no percent-encoded UTF-8, or has a parameter that is not known, or one twice.
        """
        decoded("query", scope["query_string"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method == "OPTIONS":
            return
        for route in self._app.routes:
            if route.matches({**scope, "method": method})[0] is Match.FULL:
                if getattr(route, "path", "") in self._free:
                    return
                known = self._known.get((route.path_format, method), ()) if isinstance(route, APIRoute) else ()
                break
        else:
            return
        given = Counter(name for name, _ in parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True))
        for name, count in given.items():
            if name not in known:
                near = difflib.get_close_matches(name.lower(), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                names = f"it has {', '.join(known)}" if known else "it has none"
                raise RequestError(400, f"{scope['path']}: no parameter {name!r}{hint} ({names})")
            if count > 1:
                raise RequestError(400, f"{scope['path']}: expected parameter {name!r} once, got it {count} times")


def decoded(part: str, raw: bytes) -> str:
    """Return the text of a part of a target.

    Args:
        part: its name, for the message.
        raw: its bytes, percent-encoded.

    Raises:
        RequestError: It is no percent-encoded UTF-8.
    """
    broken = _BAD_PERCENT.search(raw)
    if broken is not None:
        got = raw[broken.start() : broken.start() + 3].decode("latin-1")
        raise RequestError(400, f"the {part} holds {got!r}, which is no percent-encoding; {HOW_TO_ENCODE}")
    try:
        raw.decode("ascii")
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError(400, f"the {part} is not UTF-8; {HOW_TO_ENCODE}") from None
