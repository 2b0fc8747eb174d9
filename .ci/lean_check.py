"""Checks of the lean environment: no heavy package is importable, the import is fast, and verdicts equal the full install's."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

LIMIT_SECONDS = 0.5
FACTOR = 2.25

for heavy in ("torch", "timm", "onnx", "onnxscript", "scipy", "sklearn", "matplotlib", "export", "runtime"):
    assert importlib.util.find_spec(heavy) is None, f"{heavy} is importable in the lean install"


def import_seconds(code: str) -> float:
    """Return the time of a fresh process, the start of Python included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


# Both are timed in turns, because the machine may be busy or slow. If the runtime's dependencies alone take nearly half of the
# limit, the import may take FACTOR times as long as they do (1.8 to 2.1 on such a machine).
times, bare = list[float](), list[float]()
while len(times) < 7 or (min(times) >= max(LIMIT_SECONDS, FACTOR * min(bare)) and len(times) < 40):
    bare.append(import_seconds("import numpy, PIL.Image, pydantic"))
    times.append(import_seconds("from visionad_runtime import Inspector"))
print(
    f"lean import: best {min(times):.2f} s, worst {max(times):.2f} s of {len(times)}; numpy, PIL, pydantic alone {min(bare):.2f}"
)
assert min(times) < max(LIMIT_SECONDS, FACTOR * min(bare))

full, lean = ([json.loads(line) for line in Path(p).read_text().splitlines()] for p in sys.argv[1:3])
assert len(full) == len(lean) > 0
for a, b in zip(full, lean, strict=True):
    assert Path(a["image"]).name == Path(b["image"]).name
    assert (a["class"], a["verdict"]) == (b["class"], b["verdict"]), (a, b)
    assert abs(a["score"] - b["score"]) <= 1e-5, (a["score"], b["score"])
print(f"lean predict: {len(lean)} images, verdicts and scores as in the full install")

from visionad_runtime.cuda.kernels import read_manifest, read_target  # noqa: E402

for target in read_manifest()["targets"]:
    assert read_target(target)  # digests checked
print(f"lean install carries the kernels of {', '.join(read_manifest()['targets'])}")

from visionad_runtime.search import native  # noqa: E402

expected = {native.file_name(name, system) for name, build in native.BUILDS.items() for system in build.systems}
assert expected <= {path.name for path in native.FOLDER.iterdir()}, expected
library, problems = native.native_library()
assert library is not None and not problems, problems
print(f"lean install searches by machine code {library.name}")

from visionad_runtime.station.sinks.opcua import nodeset  # noqa: E402

assert nodeset.mended()
print(f"lean install carries {nodeset.PATH.name}")
