"""Figures of acceptance tests with real components, kept in a result file."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visionad_runtime.system import environment


def keep(variable: str, name: str, figures: dict[str, Any]) -> None:
    """Log the figures of a test; write them to the file that a variable of the environment names, beside those of others.

    Args:
        variable: names the file. Nothing is written if it is not set.
        name: of the test in the file.
        figures: values that JSON can hold. The date and the load average are added.
    """
    logging.getLogger("tests").warning(f"{name}: {figures}")
    path = os.environ.get(variable)
    if path:
        file = Path(path)
        known = json.loads(file.read_text()) if file.is_file() else {}
        facts = {"date": datetime.now(UTC).date().isoformat(), "load": round(os.getloadavg()[0], 1), **figures}
        written = {**known, "environment": environment(), name: facts}
        file.write_text(json.dumps(dict(sorted(written.items())), indent=1) + "\n")
