"""S5: the shipped model repository in the real Triton server (of nvidia-pytriton), asked by gRPC clients.

``VISIONAD_TRITON`` names a virtual environment of the system's Python with nvidia-pytriton, tritonclient[grpc] and what this
project needs; ``.ci/fleet_components`` makes it. nvidia-pytriton forces an old NumPy, so it stays apart. Triton finds packages by
PATH's Python, not by PYTHONPATH: the test makes one that has this checkout first, whatever copy the environment has.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.data import ROOT, part
from tests.fleet.components import environment, note, releases
from tests.fleet.conftest import wait_for
from tests.fleet.servers import inspected, png, serving, untimed
from tests.ports import free_port

pytestmark = pytest.mark.slow(group="fleet")

pytest.importorskip("fastapi", reason="the answers are compared with those of visionad serve")

CLIENT = """
import json, sys, threading
from pathlib import Path
import numpy as np
import tritonclient.grpc as grpc
files = sorted(Path(sys.argv[2]).glob("*.png"))
results = {}
def work(mine):
    client = grpc.InferenceServerClient(sys.argv[1])
    for path in mine:
        given = grpc.InferInput("file", [1], "BYTES")
        given.set_data_from_numpy(np.array([path.read_bytes()], dtype=np.object_))
        results[path.name] = json.loads(client.infer("visionad", [given]).as_numpy("result")[0])
threads = [threading.Thread(target=work, args=(files[i::4],)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
client = grpc.InferenceServerClient(sys.argv[1])
given = grpc.InferInput("file", [1], "BYTES")
given.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
try:
    client.infer("visionad", [given]); error = ""
except Exception as exc:
    error = str(exc)
print(json.dumps({"results": results, "error": error}))
"""


def with_checkout(python: Path, folder: Path) -> Path:
    """Make an environment that has the packages of this checkout, then those of another one; return its folder of programs."""
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([python.resolve(), "-m", "venv", "--without-pip", folder], check=True)
    own = next(folder.glob("lib/python3*/site-packages"))
    (own / "checkout.pth").write_text(f"{ROOT / 'runtime'}\n{packages}\n")
    return folder / "bin"


def test_s5_triton(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    python = environment("triton")
    programs = with_checkout(python, tmp_path / "environment")
    place = subprocess.run(
        [python, "-c", "import pytriton, os; print(os.path.dirname(pytriton.__file__))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    server = Path(place) / "tritonserver"
    backends = shutil.copytree(server / "backends", tmp_path / "backends")
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    repository = shutil.copytree(ROOT / "examples/triton", tmp_path / "repository")
    ports = [free_port() for _ in range(3)]
    variables = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{Path(place).parent / 'nvidia_pytriton.libs'}",
        "VISIONAD_MODEL": str(tiny_model),
        "VISIONAD_BANK": str(filled_bank),
    }
    command = [
        server / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}",
        "--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}",
    ]  # fmt: skip
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(40):
        (images / f"{seed:02d}.png").write_bytes(png(part(seed, defect=seed % 5 == 0)))
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, text=True)
    try:
        wait_for(f"http://127.0.0.1:{ports[0]}/v2/health/ready", process, log=tmp_path / "log")
        done = subprocess.run(
            [python, "-c", CLIENT, f"127.0.0.1:{ports[1]}", images], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()[-3000:]
        said = json.loads(done.stdout)
        with serving(tiny_model, filled_bank) as service:
            expected = {
                f"{seed:02d}.png": inspected(service.port, part(seed, defect=seed % 5 == 0)) for seed in range(40)
            }
        results = {name: untimed(result) for name, result in said["results"].items()}
        assert {n: (r["verdict"], r["class"], r["bank"]) for n, r in results.items()} == {
            n: (r["verdict"], r["class"], r["bank"]) for n, r in expected.items()
        }
        # Triton's environment has another release of ONNX Runtime, so scores may differ in the last digits.
        moved = max(abs(results[name]["score"] - r["score"]) for name, r in expected.items())
        assert moved <= 1e-5
        assert "file: " in said["error"]
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 0, (tmp_path / "log").read_text()[-3000:]
    versions = releases("nvidia-pytriton", "tritonclient", "onnxruntime", python=python)
    note("S5", images=len(results), clients=4, largest_difference=moved, status=status, releases=versions)
