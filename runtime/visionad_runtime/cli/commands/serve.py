"""``visionad serve``."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ...errors import VisionADError, is_own_module
from ..console import complain, say, until_stopped
from ..options import (
    BackendOption,
    BankArg,
    DeviceOption,
    EvidenceOption,
    KeepAlive,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)


def serve(
    model: ModelArg,
    bank: BankArg,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other boxes in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    read_only: Annotated[bool, typer.Option("--read-only", help="nobody may enroll over HTTP")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="name or address by which clients reach it, beside its own; may be repeated"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="origin of pages that may use it, such as https://line.example; may be repeated"),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    evidence: EvidenceOption = False,
    keep_alive: KeepAlive = None,
) -> None:
    """Inspect and enroll over HTTP, until Ctrl-C or a service's stop: /inspect, /overlay, /classes, /health, /metrics."""
    try:
        from ...web.access import AccessPolicy
        from ...web.http import serve as answer_requests
        from ...web.server import listen
    except ModuleNotFoundError as exc:
        if is_own_module(exc):
            raise
        raise VisionADError(f"serving needs {exc.name}: pip install 'visionad[serve]'") from None
    from ...inspector import Inspector

    access = AccessPolicy(host, allow_host or (), allow_origin or ())
    with (
        until_stopped() as stop,
        closing(listen(host, port)) as waiting,
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            preset=preset,
            views=views,
            keep_alive=keep_alive,
        ) as inspector,
    ):
        for line in inspector.calibration_warnings():
            complain(line)
        assert inspector.bank is not None
        place = f"[{host}]" if ":" in host else host
        classes = ", ".join(inspector.bank.classes) or "no class yet"
        say(
            f"serving on http://{place}:{waiting.getsockname()[1]} with {inspector.engine.name}, "
            f"bank version {inspector.bank.manifest.version} ({classes})"
        )
        answer_requests(inspector, waiting, stop, read_only=read_only, access=access, evidence=evidence)
