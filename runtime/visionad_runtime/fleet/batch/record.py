"""The record of a batch run: what it is, in ``run.json`` beside its part files."""

from __future__ import annotations

import json
from typing import Any

from ...errors import VisionADError
from ..storage import Storage

RUN_FILE = "run.json"
FORMAT, SCHEMA_VERSION = "visionad-run", 1
FIELDS = {"run": str, "model": str, "bank": str, "backend": str, "blocks": int}
"""Fields that a reader takes, and their types."""


def read_record(storage: Storage) -> dict[str, Any]:
    """Return the record of the run in a folder.

    Raises:
        FileMissingError: There is none.
        VisionADError: It is damaged, or of a later version.
    """
    place, mend = f"{storage.url}/{RUN_FILE}", "delete it and run `visionad batch` again"
    try:
        record = json.loads(storage.read(RUN_FILE))
    except (ValueError, RecursionError):
        raise VisionADError(f"{place} is damaged: not JSON; {mend}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise VisionADError(f"{place} is damaged: no record of a batch run; {mend}")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise VisionADError(f"{place}: expected schema_version {SCHEMA_VERSION}, got {record.get('schema_version')!r}")
    for name, kind in FIELDS.items():
        if type(record.get(name)) is not kind:
            raise VisionADError(f"{place} is damaged: {name!r} is missing or wrong; {mend}")
    return record


def write_record(storage: Storage, record: dict[str, Any]) -> None:
    """Write the record of a run, unless the folder has it.

    Args:
        storage: folder of the run.
        record: the record, with :data:`FIELDS`.

    Raises:
        VisionADError: The folder has a record that is damaged, or of another run.
    """
    if storage.size(RUN_FILE) is None:
        storage.write(RUN_FILE, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    elif read_record(storage)["run"] != record["run"]:
        raise VisionADError(f"{storage.url}/{RUN_FILE} is the record of another run; name another folder with --out")
