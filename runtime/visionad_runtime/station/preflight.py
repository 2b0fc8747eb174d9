"""What a station lacks before it starts: missing packages, models, classes, cameras' folders, occupied ports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from ..bank.folder import check_identity, restorable_versions
from ..bank.names import normalize_class_name
from ..engine.registry import AUTO, backend_spec
from ..errors import VisionADError
from ..formats.manifest import BankManifest, ModelManifest, parse_precision, read_manifest
from ..formats.model_folder import read_model
from ..scoring.preset import load_preset
from .front.cycle import MAX_WAITING
from .page.link import page_missing
from .preflight_files import file_problems
from .settings import Station, StationSettings
from .worker.alignment import first_reference, unalignable
from .worker.golden import golden_images


def problems_of(station: Station) -> list[str]:
    """Return one line for each thing that keeps a station from running; none if it can start.

    Args:
        station: the station file.
    """
    problems: list[str] = []
    settings = station.settings
    model: ModelManifest | None = None
    manifest: BankManifest | None = None
    try:
        model = read_model(settings.model)
    except VisionADError as exc:
        problems.append(str(exc))
    try:
        manifest = read_manifest(settings.bank, BankManifest)
        if model is not None:
            check_identity(settings.bank, manifest.identity, model.identity)
    except VisionADError as exc:
        problems.append(str(exc))
    problems += _engine_problems(settings, model)
    if manifest is not None:
        problems += _recipe_problems(station, manifest)
    if settings.checks.golden is not None:
        for number, recipe in settings.recipes.items():
            try:
                golden_images(settings.checks.golden, number, recipe.cameras or tuple(settings.cameras))
            except VisionADError as exc:
                problems.append(str(exc))
    for missing in (*(c.missing() for c in station.cameras.values()), *(s.missing() for s in station.sinks.values())):
        if missing is not None:
            problems.append(missing)
    if settings.web is not None and (missing := page_missing()) is not None:
        problems.append(missing)
    live = [sink for sink in station.sinks.values() if sink.live]
    if settings.trigger == "line" and not live and settings.web is None:
        problems.append(
            "nothing can trigger: add a sink such as `{kind: modbus}` or a page (`web: {port: 8000}`), or let the cameras begin "
            "(`trigger: free`)"
        )
    if live and not any(getattr(sink, "acknowledges", True) for sink in live):
        problems.append(
            f"nobody acknowledges results, and after {MAX_WAITING} of them the station is not ready: set acknowledge_after_ms of "
            f"the sink {next(name for name, sink in station.sinks.items() if sink.live)}"
        )
    ports: dict[tuple[str, int], str] = {}
    listening = {name: getattr(sink, "_settings", None) for name, sink in station.sinks.items() if sink.live}
    if settings.web is not None:
        listening["web"] = settings.web
    for name, own in listening.items():
        host, port = getattr(own, "host", None), getattr(own, "port", None)
        if not isinstance(host, str) or not isinstance(port, int) or port == 0:
            continue
        other = ports.setdefault((host, port), name)
        trouble = f"{other} has it" if other != name else _port_trouble(host, port)
        if trouble:
            problems.append(f"{name}: cannot listen at {host}:{port}: {trouble}; choose another port or address")
    folders = [settings.records.parent]
    folders += [settings.archive.folder] if settings.archive else []
    folders += [settings.log.parent] if settings.log else []
    for folder in dict.fromkeys(folders):
        trouble = _folder_trouble(folder)
        if trouble:
            problems.append(trouble)
    return problems + file_problems(station)


def _engine_problems(settings: StationSettings, model: ModelManifest | None) -> list[str]:
    def check_preset() -> None:
        preset = None if settings.preset is None else load_preset(settings.preset)
        if preset is not None and model is not None:
            preset.check_size(model)

    looks: list[Callable[[], object]] = [lambda: parse_precision(settings.precision), check_preset]
    if settings.backend != AUTO:
        looks.insert(0, lambda: backend_spec(settings.backend))
    problems = []
    for look in looks:
        try:
            look()
        except VisionADError as exc:
            problems.append(str(exc))
    return problems


def _recipe_problems(station: Station, manifest: BankManifest) -> list[str]:
    problems = []
    bank = station.settings.bank
    for number, recipe in station.settings.recipes.items():
        version = manifest
        if recipe.bank_version not in (None, manifest.version):
            kept = restorable_versions(bank)
            if recipe.bank_version not in kept:
                problems.append(f"recipe {number}: bank {bank} has no version {recipe.bank_version}")
                continue
            version = BankManifest.model_validate_json(kept[recipe.bank_version].read_bytes())
        named = recipe.class_name.values() if isinstance(recipe.class_name, dict) else [recipe.class_name]
        for name in named:
            if name is not None and normalize_class_name(name) not in version.classes:
                known = ", ".join(sorted(version.classes)) or "no class yet"
                problems.append(
                    f"recipe {number}: bank {bank} has no class {name!r}; it has {known}; enroll with `visionad bank add`"
                )
        if recipe.alignment or station.settings.checks.alignment:
            aligned = [normalize_class_name(name) for name in named if name is not None]
            for name in dict.fromkeys(aligned if len(aligned) == len(named) else version.classes):
                if name in version.classes:
                    reference = first_reference(bank, version.classes[name].images, None)
                    unaligned = unalignable(name, reference)
                    problems += [] if unaligned is None else [f"recipe {number}: {unaligned}"]
        if recipe.code is not None:
            try:
                import zxingcpp  # noqa: F401
            except ImportError:
                problems.append(f"recipe {number}: code reading needs zxing-cpp: pip install 'visionad[codes]'")
    return problems


def _port_trouble(host: str, port: int) -> str:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as exc:
        return "the port is in use" if exc.errno == errno.EADDRINUSE else str(exc.strerror or exc)
    return ""


def _folder_trouble(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".visionad-check"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as exc:
        return f"{folder}: cannot be written: {exc.strerror}; mend its permissions, or choose another folder"
    return ""
