"""An application whose ``/openapi.json`` names the statuses that it answers with, and no others."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

OTHERS = (
    "Other paths are answered with status 404, other methods of a path with 405, both with an error as the paths below have it. "
    "`HEAD` and `OPTIONS` are not listed."
)
"""For the description: what has no place beside a path."""
_UNUSED = ("HTTPValidationError", "ValidationError")


class DescribedApp(FastAPI):
    """FastAPI without the status 422, which it describes by itself: values that do not fit are answered with 400."""

    def openapi(self) -> dict[str, Any]:
        """Return the description."""
        document = super().openapi()
        for methods in document["paths"].values():
            for facts in methods.values():
                facts["responses"].pop("422", None)
        for name in _UNUSED:
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document
