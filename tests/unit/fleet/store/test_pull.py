"""A bank from a store names files of its own folder only, whoever has signed it."""

from __future__ import annotations

from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import BankError
from visionad_runtime.fleet.store.pull import _names
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import part


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("pull") / "bank"
    with Inspector.open(tiny_model, folder, threads=1) as inspector:
        inspector.enroll("disc", [part(1)])
    return folder


@pytest.mark.parametrize("field", ["kept", "tokens"])
@pytest.mark.parametrize("name", ["../x", "../../x", "a/../../../x", "/tmp/x"])
def test_a_file_beyond_the_bank_is_refused(bank: Path, field: str, name: str) -> None:
    manifest = read_manifest(bank, BankManifest)
    entry = manifest.classes["disc"]
    assert len(_names(bank, manifest)) == 2
    image = entry.images[0].model_copy(update={field: name})
    changed = manifest.model_copy(update={"classes": {"disc": entry.model_copy(update={"images": (image,)})}})
    with pytest.raises(BankError, match="not in its folder"):
        _names(bank, changed)
