"""In the lean environment: nothing heavy can be imported, the import is quick, and the verdicts are the full install's."""

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 0.5

for heavy in ("torch", "timm", "onnx", "onnxscript", "scipy", "sklearn", "matplotlib", "export", "runtime"):
    assert importlib.util.find_spec(heavy) is None, f"{heavy} is importable in the lean install"


def import_seconds() -> float:
    """Processor time of an import in a fresh process: what else the box is doing does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "from visionad_runtime import Inspector"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


times = [import_seconds() for _ in range(7)]
print(f"lean import, Python's own start included: best {min(times):.2f} s, worst {max(times):.2f} s of processor time")
assert min(times) < LIMIT_SECONDS

full, lean = ([json.loads(line) for line in Path(p).read_text().splitlines()] for p in sys.argv[1:3])
assert len(full) == len(lean) > 0
for a, b in zip(full, lean, strict=True):
    assert Path(a["image"]).name == Path(b["image"]).name
    assert (a["class"], a["verdict"]) == (b["class"], b["verdict"]), (a, b)
    assert abs(a["score"] - b["score"]) <= 1e-5, (a["score"], b["score"])
print(f"lean predict: {len(lean)} pictures, verdicts and scores as in the full install")

from visionad_runtime.cuda.kernels import read_manifest, read_target  # noqa: E402

for target in read_manifest()["targets"]:
    assert read_target(target)  # digests checked
print(f"lean install carries the kernels of {', '.join(read_manifest()['targets'])}")
