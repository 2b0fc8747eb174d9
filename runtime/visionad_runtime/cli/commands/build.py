"""``visionad build``. Heavy modules are imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import VisionADError

if TYPE_CHECKING:
    from ...formats.manifest import ModelManifest


def build_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")],
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="a backend whose engines are built beforehand; `visionad doctor` lists the backends"
        ),
    ],
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="P", help="require fp32, tf32, bf16 or fp16 [default: as exported]"),
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--capability",
            metavar="X.Y",
            help="build for this compute capability only, if the backend can build for a GPU that is not in this machine; "
            "repeatable [default: one engine for 8.0 and newer]",
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="build even if the engine is in the cache")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Build the model's TensorRT engine, check it, and store it in MODEL.engines beside the model."""
    from ...engine.registry import backend_spec, backends
    from ...formats.model_folder import read_model
    from ..console import progress

    spec = backend_spec(backend)
    if spec.build is None:
        builders = " or ".join(other.name for other in backends().values() if other.needs_build)
        raise VisionADError(f"--backend {backend}: expected {builders}; the others need no build")
    if capability and not spec.build_targets:
        builders = " or ".join(other.name for other in backends().values() if other.build_targets)
        raise VisionADError(f"--capability is for {builders}; {backend} builds for the GPU of this machine")
    manifest = read_model(model)
    exported: str = manifest.precision
    if precision not in (None, exported):
        raise VisionADError(
            f"--precision {precision}: {model} was exported in {exported}, and an engine computes in the types of its graph; "
            f"export it with `visionad export --precision {precision}`"
        )
    targets: list[str | None] = [*capability] if capability else [None]
    for target in targets:
        with progress(f"building {backend} {target or ''}".rstrip(), 100) as step:
            built = spec.build(model, manifest, target=target, step=step, rebuild=rebuild)
        facts = {**built, "self_test": _self_test(model, manifest, backend)}
        typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else _report(facts, manifest))


def _self_test(model: Path, manifest: ModelManifest, backend: str) -> str | None:
    """Test the engine if this machine has a GPU. Return the result, or ``None`` without a GPU: then the first start tests it."""
    from ...cuda.thread import DeviceThread
    from ...pipeline.opening import open_engine

    try:
        DeviceThread.of(0).run(lambda device: device.name)
    except VisionADError:
        return None
    engine = open_engine(model, manifest, backend)
    engine.close()
    return engine.info["self-test"]


def _report(facts: dict[str, Any], manifest: ModelManifest) -> str:
    place = facts["gpu"] or (
        "compute capability 8.0 and newer"
        if facts["capability"] == "portable"
        else f"compute capability {facts['capability']}"
    )
    types = ", ".join(f"{n} in {t}" for t, n in facts["matrix_types"].items())
    memory = ", ".join(f"{k.removesuffix('_bytes')} {v / 1e6:.1f} MB" for k, v in facts["memory"].items())
    done = f"built in {facts['seconds']} s" if facts["fresh"] else "was built already"
    low, _, high = facts["profile"]
    tested = (
        f"passed: {facts['self_test']}"
        if facts["self_test"]
        else "at the first start on the target (no GPU in this machine)"
    )
    lines = [
        f"{facts['backend']} {facts['builder']} engine of {manifest.identity.backbone} for {place}: {done}",
        f"  precision  {facts['precision']}; matrix layers: {types}",
        f"  attention  {facts['fused_attention']} of {facts['attentions']} fused",
        f"  memory     {memory}",
        f"  profile    {low} to {high} images a call",
        f"  self-test  {tested}",
        f"  folder     {facts['folder']}",
    ]
    return "\n".join(lines)
