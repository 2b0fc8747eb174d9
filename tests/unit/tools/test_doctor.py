"""`visionad doctor` names the packages that pyproject.toml installs."""

from __future__ import annotations

import re
import tomllib

from visionad_runtime.engine.registry import backends
from visionad_runtime.tools import doctor

from tests.data import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    """Return the distributions of requirement lines."""
    return {re.split(r"[^A-Za-z0-9-]", line)[0] for line in requirements} - {"visionad"}


def test_the_lean_install_is_what_the_project_depends_on() -> None:
    assert set(doctor.LEAN) == names(PROJECT["dependencies"])


def test_every_extra_brings_what_the_project_says() -> None:
    told = {name: set(packages) for name, packages in doctor.EXTRAS.items()}
    for spec in backends().values():
        if spec.extra is not None:
            told.setdefault(spec.extra, set()).update(spec.packages)
    extras = PROJECT["optional-dependencies"]
    assert told == {name: names(extras[name]) for name in extras.keys() - {"dev", "dev-line", "docs", "test"}}
