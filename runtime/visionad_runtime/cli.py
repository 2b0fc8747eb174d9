"""The ``visionad`` command. Exit status: 0 good, 2 the user's mistake (one line on stderr), 1 the program's own fault."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from visionad_export.cli import export_command, parity_command  # light: torch is imported only when it runs

from . import __version__
from .bench.command import bench_command
from .build import build_command
from .entry import does_not_import, is_own
from .errors import BankError, VisionADError
from .evaluation.command import eval_command

if TYPE_CHECKING:
    from .inspector import FileResult
    from .picture import Found

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bank_app = typer.Typer(help="Enrol, remove and check good parts.", rich_markup_mode=None)
app.add_typer(bank_app, name="bank")
app.command("export")(export_command)
app.command("parity")(parity_command)
app.command("build")(build_command)
app.command("eval")(eval_command)
app.command("bench")(bench_command)

INTERRUPTED = 130
"""Exit status that the parser returns after Ctrl-C."""
INTERRUPTION = "interrupted; what was finished is kept"

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="model folder, made by `visionad export`")]
BankArg = Annotated[Path, typer.Argument(metavar="BANK", help="bank folder")]
# readable=False: the parser must not refuse a whole run for one file; reading it says what is wrong, per file
PathsArg = Annotated[list[Path], typer.Argument(metavar="PATH...", help="picture files or folders", readable=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def as_stored(name: str | None) -> str | None:
    """A class name in the form in which banks store it, however the terminal composes its letters."""
    if name is None:
        return None
    from .bank import stored_name

    return stored_name(name)


ClassOption = Annotated[str, typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts")]
MaybeClass = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", callback=as_stored, help="class of the parts; skips routing"),
]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or one that `visionad doctor` lists")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="compute in fp32, bf16 or fp16, by a backend that offers it [default: the model's]",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="compute on cpu, gpu or npu, by a backend that offers it (openvino)"),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of the engine [default, and at most: all cores]")
]
BitDepth = Annotated[
    int | None, typer.Option("--bit-depth", min=9, max=16, help="bits the camera fills in 16-bit files")
]
KeepAlive = Annotated[
    float | None,
    typer.Option(
        "--keep-alive",
        metavar="SECONDS",
        help="a GPU runs its last picture again when none came for so long, so that its clocks stay up [default: never]",
    ),
]
ViewsOption = Annotated[
    str | None, typer.Option("--views", metavar="original,flip,clamp", help="[default: all of the bank's]")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"visionad {__version__}")
        raise typer.Exit


def _log(verbose: bool) -> None:
    log = logging.getLogger("visionad")
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    if not log.handlers:
        log.addHandler(_Stderr())


class _Stderr(logging.Handler):
    """The log's lines as the command's other messages, on whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"visionad: {record.getMessage()}\n")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", callback=_log, help="Say on stderr what is chosen and why, such as the backend."),
    ] = False,
) -> None:
    """Few-shot visual inspection: show 1 to 8 good parts, start inspecting."""


def main() -> None:
    """Entry point of the console script."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this (>&-, a service)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process lives
        else:  # JSON is UTF-8 wherever it goes; a file name that is no UTF-8 is escaped as JSON escapes it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    args = list(args)
    if args in ([], ["bank"]):
        args.append("--help")
    if "" in args:  # as a path it would mean the working folder and everything below
        return _complain("an argument is empty (a variable that is not set?); give a path or a name in its place")
    try:
        status = app(args=args, prog_name="visionad", standalone_mode=False)
        sys.stdout.flush()
    except VisionADError as exc:
        return _complain(str(exc))
    except (BrokenPipeError, SystemExit):
        _drop_stdout()  # the reader went away (| head), which the parser makes an exit; that is its right
        return 0
    except KeyboardInterrupt:  # before or after the parser takes care of it
        status = INTERRUPTED
    except MemoryError:
        return _complain("out of memory; use smaller pictures, a smaller bank or a smaller --batch")
    except Exception as exc:
        # A native library that was being imported makes an ImportError of it.
        if isinstance(exc.__cause__, KeyboardInterrupt):
            return _complain(INTERRUPTION, INTERRUPTED)
        if hasattr(exc, "format_message"):  # a usage error of the command-line parser
            return _complain(exc.format_message())
        if isinstance(exc, ImportError) and not is_own(exc):
            return _complain(does_not_import(exc))
        if isinstance(exc, OSError) and exc.filename:
            return _complain(f"{exc.filename}: {exc.strerror}")
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            _drop_stdout()
            return _complain("the output could not be written: no space left where it goes; free some and run again")
        raise
    if status == INTERRUPTED:
        return _complain(INTERRUPTION, INTERRUPTED)
    return status if isinstance(status, int) else 0


def _drop_stdout() -> None:
    """What is left to write goes nowhere, or the interpreter would fail on it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, status: int = 2) -> int:
    sys.stderr.write(f"visionad: {' '.join(message.split())}\n")
    return status


def _say(text: str) -> None:
    """A line of output, seen at once: a line PC reads it through a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal's stderr, nothing in a pipe. Yields the function that counts one step."""
    if not sys.stderr.isatty() or total < 2:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


# -- predict ----------------------------------------------------------------------------------------------------------


@app.command()
def predict(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: MaybeClass = None,
    as_json: JsonFlag = False,
    maps: Annotated[Path | None, typer.Option(help="write raw anomaly maps (.npy, float32 256 x 256) here")] = None,
    overlays: Annotated[Path | None, typer.Option(help="write overlay pictures (.png) here")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="pictures an engine call; never changes a result")] = 1,
    bit_depth: BitDepth = None,
) -> int:
    """Inspect pictures: score, verdict and regions of each, in input order."""
    from .artefacts import parse_precision
    from .inspector import Inspector
    from .picture import Found, find_pictures

    inputs: list[Found | tuple[Path, VisionADError]] = []
    for path in paths:  # a folder without pictures is reported like an unreadable picture: the rest goes on
        try:
            inputs += find_pictures([path])
        except VisionADError as exc:
            inputs.append((path, exc))
    pictures = [item for item in inputs if isinstance(item, Found)]
    if maps or overlays:
        _check_names([f.name for f in pictures])
        _check_targets(pictures, [(maps, ".npy"), (overlays, ".png")])
    _require_bank(bank)
    report = _Report(as_json, maps, overlays)
    with (
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=parse_precision(precision),
            device=device,
            threads=threads,
            views=_split(views),
        ) as inspector,
        progress("inspecting", len(pictures)) as step,
    ):
        for line in inspector.uncalibrated():
            _complain(line)
        results = inspector.inspect_files(
            [f.path for f in pictures], class_name=class_name, batch=batch, bit_depth=bit_depth
        )
        for item in inputs:
            if not isinstance(item, Found):
                report.error(*item)
                continue
            report.add(next(results), item.name)
            step()
    if not as_json:
        _say(report.summary())
    return 2 if report.counts["unreadable"] or len(pictures) < len(inputs) else 0


@app.command()
def watch(
    model: ModelArg,
    bank: BankArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder in which pictures arrive")],
    class_name: MaybeClass = None,
    as_json: JsonFlag = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="note every picture here; a restart then inspects what arrived meanwhile"),
    ] = None,
    existing: Annotated[bool, typer.Option("--existing", help="also the pictures that lie there already")] = False,
    settle: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="a file is whole when it has not changed for so many seconds")
    ] = 0.2,
    maps: Annotated[Path | None, typer.Option(help="write raw anomaly maps (.npy, float32 256 x 256) here")] = None,
    overlays: Annotated[Path | None, typer.Option(help="write overlay pictures (.png) here")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    keep_alive: KeepAlive = None,
) -> None:
    """Inspect pictures as they arrive in a folder, until Ctrl-C or a service's stop. What is enrolled meanwhile counts."""
    from .artefacts import parse_precision
    from .inspector import Inspector
    from .watch import Arrivals, Journal

    if journal is not None and existing:
        raise VisionADError("--existing and --journal: with a journal, what lies there and is not in it is inspected")
    if overlays is not None and Path(os.path.realpath(overlays)).is_relative_to(os.path.realpath(folder)):
        raise VisionADError(
            f"--overlays {overlays} lies in {folder} and would be inspected itself; choose another folder"
        )
    for target in (maps, overlays):
        if target is not None and target.exists() and not target.is_dir():
            raise VisionADError(f"{target}: wanted a folder for the results, found a file; choose another place")
    _require_bank(bank)
    report = _Report(as_json, maps, overlays)
    with (
        _until_stopped() as stop,
        ExitStack() as stack,
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=parse_precision(precision),
            device=device,
            threads=threads,
            views=_split(views),
            keep_alive=keep_alive,
        ) as inspector,
    ):
        inspector.enrolled(class_name)
        book = None if journal is None else stack.enter_context(closing(Journal(journal)))
        done = (lambda here: () if existing else here) if book is None else book.noted
        arrivals = Arrivals(folder, done, settle, stop.wait)
        for line in inspector.uncalibrated():
            _complain(line)
        passed = (
            f", passing over {arrivals.passed_over} of the {arrivals.there} pictures there" if arrivals.there else ""
        )
        _complain(f"watching {folder} with {inspector.engine.name}{passed}")
        for one in arrivals:
            if stop.is_set():
                break
            if inspector.refresh():
                assert inspector.bank is not None
                manifest = inspector.bank.manifest
                _complain(f"bank version {manifest.version} from here on: {manifest.change}")
            try:
                (found,) = inspector.inspect_files([one.picture.path], class_name=class_name, bit_depth=bit_depth)
            except BankError as exc:  # the class was removed; it may come back
                report.counts["not inspected"] += 1
                report.error(one.picture.path, exc)
                continue
            if found.error is not None and arrivals.again(one):
                continue
            facts = report.add(found, one.picture.name)
            if book is not None:
                book.add(one, facts)
    if not as_json:
        _say(report.summary())


@app.command()
def serve(
    model: ModelArg,
    bank: BankArg,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other boxes in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    read_only: Annotated[bool, typer.Option("--read-only", help="nobody may enrol over HTTP")] = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    keep_alive: KeepAlive = None,
) -> None:
    """Inspect and enrol over HTTP, until Ctrl-C or a service's stop: /inspect, /overlay, /classes, /health, /metrics."""
    try:
        from .serve import listen
        from .serve import serve as answer_requests
    except ModuleNotFoundError as exc:
        if is_own(exc):
            raise
        raise VisionADError(f"serving needs {exc.name}: pip install 'visionad[serve]'") from None
    from .artefacts import parse_precision
    from .inspector import Inspector

    with (
        _until_stopped() as stop,
        closing(listen(host, port)) as waiting,
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=parse_precision(precision),
            device=device,
            threads=threads,
            views=_split(views),
            keep_alive=keep_alive,
        ) as inspector,
    ):
        for line in inspector.uncalibrated():
            _complain(line)
        assert inspector.bank is not None
        place = f"[{host}]" if ":" in host else host
        classes = ", ".join(inspector.bank.classes) or "no class yet"
        _say(
            f"serving on http://{place}:{waiting.getsockname()[1]} with {inspector.engine.name}, "
            f"bank version {inspector.bank.manifest.version} ({classes})"
        )
        answer_requests(inspector, waiting, stop, read_only=read_only)


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Set by Ctrl-C or a service's stop, so that what is being inspected is finished. A second Ctrl-C does not wait for that."""
    stop, before = threading.Event(), dict[signal.Signals, Any]()

    def end(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Report:
    """What is said and written of pictures.

    Attributes:
        counts: pictures by verdict, and those without one.
    """

    def __init__(self, as_json: bool, maps: Path | None, overlays: Path | None) -> None:
        self.as_json, self.maps, self.overlays = as_json, maps, overlays
        self.counts: Counter[str] = Counter()

    def add(self, one: FileResult, name: Path) -> dict[str, Any]:
        """Say and write what was found of a picture, which the files are named after. Returns what ``--json`` says."""
        if one.result is None or one.rgb is None:
            self.counts["unreadable"] += 1
            return self.error(one.path, one.error)
        self.counts[one.result.verdict] += 1
        if self.maps:
            _save_map(self.maps / name.with_suffix(".npy"), one.result.anomaly_map)
        if self.overlays:
            from .overlay import save_overlay

            save_overlay(self.overlays / name.with_suffix(".png"), one.rgb, one.result)
        facts = one.result.to_dict(str(one.path))
        _say(json.dumps(facts, ensure_ascii=False) if self.as_json else _verdict_line(one.path, one.result))
        return facts

    def error(self, path: Path, error: Exception | None) -> dict[str, Any]:
        """Say why there is no result. Returns what ``--json`` says."""
        facts = {"image": str(path), "error": str(error)}
        if self.as_json:
            _say(json.dumps(facts, ensure_ascii=False))
        else:
            _complain(str(error))
        return facts

    def summary(self) -> str:
        """How many pictures of each kind."""
        return "  ".join(f"{n} {what}" for what, n in sorted(self.counts.items())) or "no picture"


def _split(views: str | None) -> list[str] | None:
    return None if views is None else [v.strip() for v in views.split(",")]


def _verdict_line(path: Path, result: Any) -> str:
    against = f"/ {result.threshold:.4f}" if result.threshold is not None else "/ no threshold"
    name = result.class_name or "unknown class"
    place = f"  at {','.join(map(str, result.regions[0].bbox))}" if result.verdict == "anomalous" else ""
    return f"{result.verdict:<9}  {result.score:.4f} {against}  {name}  {path}{place}"


def _check_names(names: Sequence[Path]) -> None:
    twice = [str(n) for n, count in Counter(n.with_suffix("") for n in names).items() if count > 1]
    if twice:
        raise VisionADError(
            f"{len(twice)} names would be written twice (first: {twice[0]}); inspect these pictures in separate calls, "
            "or name their common folder"
        )


def _check_targets(pictures: Sequence[Found], outputs: Sequence[tuple[Path | None, str]]) -> None:
    """Results go into folders, and no result may be written over a picture that is inspected."""
    inputs = {os.path.realpath(f.path) for f in pictures}
    for folder, suffix in outputs:
        if folder and folder.exists() and not folder.is_dir():
            raise VisionADError(f"{folder}: wanted a folder for the results, found a file; choose another place")
        for target in [folder / f.name.with_suffix(suffix) for f in pictures] if folder else []:
            if os.path.realpath(target) in inputs:
                raise VisionADError(
                    f"{target} is a picture to inspect and would be written over; choose another folder"
                )


def _save_map(path: Path, anomaly_map: Any) -> None:
    import numpy as np

    from .artefacts import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as f:
        np.save(f, anomaly_map, allow_pickle=False)


def _require_bank(bank: Path) -> None:
    from .artefacts import BankManifest, read_manifest

    read_manifest(bank, BankManifest)


# -- bank -------------------------------------------------------------------------------------------------------------


@bank_app.command("add")
def bank_add(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: ClassOption,
    shots: Annotated[int | None, typer.Option(min=1, help="enrol only this many of the pictures")] = None,
    seed: Annotated[
        int | None, typer.Option(help="choose them at random as the paper's runs do [default: the first by name]")
    ] = None,
    choose: Annotated[
        int | None,
        typer.Option("--choose", min=1, help="enrol those from which the other good pictures differ least [1 to 24]"),
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    as_json: JsonFlag = False,
) -> None:
    """Enrol good pictures in a class (new or existing). All or none of them."""
    from .bank import check_class_name
    from .inspector import Inspector, read_supports
    from .mutual import choose_covering, standings
    from .picture import find_pictures
    from .support import choose_support_paths

    class_name = check_class_name(class_name)
    if seed is not None and shots is None:
        raise VisionADError("--seed chooses among pictures; say how many with --shots")
    if choose is not None and shots is not None:
        raise VisionADError("--choose and --shots both say how many pictures to enrol; give one of them")
    pictures = [f.path for f in find_pictures(paths)]
    if shots is not None:
        if shots > len(pictures):
            raise VisionADError(f"--shots {shots}: only {len(pictures)} pictures were found")
        pictures = choose_support_paths(pictures, shots, seed)
    read_supports(pictures, bit_depth)  # a bad file is found before the model is loaded
    with Inspector.open(model, bank, backend=backend, threads=threads) as inspector:
        assert inspector.bank is not None
        known = inspector.bank.classes.get(class_name)
        if choose is not None:
            with progress(f"comparing {class_name}", len(pictures)) as step:
                pictures = choose_covering(inspector, class_name, pictures, choose, bit_depth=bit_depth, step=step)
        with progress(f"enrolling {class_name}", len(pictures)) as step:
            version = inspector.enroll_files(class_name, pictures, bit_depth=bit_depth, step=step)
    enrolled = inspector.bank.classes[class_name]
    total = len(enrolled.entry.images)
    odd = [s for s in standings(enrolled, inspector.views, inspector.manifest) if s.odd]
    if as_json:
        facts = {"class": class_name, "added": len(pictures), "shots": total, "bank_version": version}
        named = [{"sha256": s.image.sha256, "source": s.image.source, "ratio": s.ratio} for s in odd]
        _say(json.dumps({**facts, "images": [str(p) for p in pictures], "odd": named}, ensure_ascii=False))
        return
    if choose is not None:
        for path in pictures:
            _say(f"chosen: {path}")
    lost = (
        "; its threshold was dropped, calibrate again"
        if known is not None and known.entry.threshold is not None
        else ""
    )
    _say(f"enrolled {len(pictures)} in class {class_name} ({total} in all), bank version {version}{lost}")
    for s in odd:
        _say(_odd_line(bank, class_name, s))


def _odd_line(bank: Path, class_name: str, standing: Any) -> str:
    return (
        f"look at {standing.image.source}: it differs from the others {standing.ratio:.1f} times as much as they do; "
        f"if it is not good, `visionad bank remove {bank} --class {class_name} --image {standing.image.sha256[:12]}`"
    )


@bank_app.command("remove")
def bank_remove(
    bank: BankArg,
    class_name: ClassOption,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="SHA", help="only the support picture whose sha256 begins so, 4 digits or more"
        ),
    ] = None,
) -> None:
    """Remove a class, or one support picture of it."""
    from .bank import Bank

    if image is None:
        version, change = Bank.drop(bank, class_name), f"remove {class_name}"
    else:
        opened = Bank.open(bank)
        version, change = opened.remove(class_name, image), opened.manifest.change
    _say(f"bank version {version}: {change} (`visionad bank undo` takes it back)")


@bank_app.command("undo")
def bank_undo(
    bank: BankArg,
    to: Annotated[
        int | None, typer.Option("--to", min=1, metavar="VERSION", help="any that `bank info` lists, undone ones too")
    ] = None,
) -> None:
    """Take back the last change, or all since a version."""
    from .bank import Bank

    now = Bank.undo(bank, to)
    _say(f"bank version {now.version}: {now.change}; classes: {', '.join(now.classes) or 'none'}")


@bank_app.command("info")
def bank_info(bank: BankArg, as_json: JsonFlag = False) -> None:
    """What a bank holds."""
    from .artefacts import BankManifest, as_dict, read_manifest
    from .bank import Bank

    manifest = read_manifest(bank, BankManifest)
    kept = [v for v in Bank.kept(bank) if v != manifest.version]
    if as_json:
        classes = {
            n: {"shots": len(e.images), "bytes": _size(bank / e.file), **as_dict(e)}
            for n, e in manifest.classes.items()
        }
        _say(
            json.dumps(
                {**as_dict(manifest), "kept": kept, "model_digest": manifest.identity.digest(), "classes": classes},
                ensure_ascii=False,
            )
        )
        return
    _say(f"version {manifest.version} ({manifest.created}): {manifest.change}")
    _say(f"made with {manifest.identity.describe()}, views {', '.join(manifest.views)}")
    for name, entry in manifest.classes.items():
        threshold = f"threshold {entry.threshold:.4f}" if entry.threshold is not None else "no threshold"
        _say(f"{name}: {len(entry.images)} shots, {_size(bank / entry.file) / 1e6:.1f} MB, {threshold}")
        for image in entry.images:
            _say(f"  {image.sha256[:12]}  {image.source}")
    if kept:
        _say(f"`visionad bank undo {bank} --to VERSION` brings back any of: {', '.join(map(str, kept))}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@bank_app.command("verify")
def bank_verify(bank: BankArg) -> None:
    """Read everything and check every digest, shape and row."""
    from .bank import verify

    manifest = verify(bank)
    _say(f"sound: version {manifest.version}, {len(manifest.classes)} classes")


@bank_app.command("audit")
def bank_audit(
    model: ModelArg,
    bank: BankArg,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", callback=as_stored, help="[default: every class]")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score each enrolled picture against the others of its class, to find one that should not have been enrolled."""
    from .artefacts import ModelManifest, read_manifest
    from .bank import Bank, unknown_class
    from .mutual import standings

    manifest = read_manifest(model, ModelManifest)
    opened = Bank.open(bank, manifest.identity)
    if class_name is not None and class_name not in opened.classes:
        raise VisionADError(unknown_class(bank, class_name, opened.classes))
    for name in opened.classes if class_name is None else [class_name]:
        found = standings(opened.classes[name], opened.manifest.views, manifest)
        if as_json:
            rows = [
                {"sha256": s.image.sha256, "source": s.image.source, "score": s.score, "ratio": s.ratio, "odd": s.odd}
                for s in found
            ]
            _say(json.dumps({"class": name, "pictures": rows}, ensure_ascii=False))
            continue
        if not found:
            _say(f"{name}: fewer than three pictures; none can be told from the others")
        for s in sorted(found, key=lambda s: -s.ratio):
            _say(f"{name}: {s.score:.4f}, {s.ratio:.2f} times the others' median  {s.image.source}")
        for s in found:
            if s.odd:
                _say(_odd_line(bank, name, s))


# -- the rest ---------------------------------------------------------------------------------------------------------


@app.command()
def calibrate(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: ClassOption,
    max_false_reject: Annotated[float, typer.Option(help="share of good parts that may be rejected")] = 0.01,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    as_json: JsonFlag = False,
) -> None:
    """Set a class's threshold from good parts only."""
    from .artefacts import as_dict, parse_precision
    from .calibrate import calibrate_class
    from .inspector import Inspector
    from .picture import find_pictures

    pictures = [f.path for f in find_pictures(paths)]
    _require_bank(bank)
    with (
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=parse_precision(precision),
            device=device,
            threads=threads,
            views=_split(views),
        ) as inspector,
        progress(f"calibrating {class_name}", len(pictures)) as step,
    ):
        done = calibrate_class(inspector, class_name, pictures, max_false_reject, bit_depth, step)
    threshold = done.threshold
    if as_json:
        facts = {"class": class_name, "threshold": threshold.value, "bank_version": done.bank_version}
        _say(json.dumps({**facts, "skipped": done.skipped, **as_dict(done.record)}, ensure_ascii=False))
        return
    _say(
        f"class {class_name}: threshold {threshold.value:.4f} from {threshold.normals} good pictures ({done.record.method})"
    )
    _say(
        f"a further good part is rejected with probability at most {threshold.guaranteed:.4f} on average over calibrations; "
        f"this threshold's own rate is below {threshold.bound:.4f} at {done.record.confidence:.0%} confidence"
    )
    if done.record.method != "held-out":
        _say("enrolled pictures were scored as if they were not enrolled; for a rate that you must defend, give others")
    for path in done.skipped:
        _say(f"passed over, it is the class's only support picture: {path}")
    _say(f"bank version {done.bank_version}")


@app.command()
def doctor(
    as_json: JsonFlag = False,
    model: Annotated[Path | None, typer.Option(metavar="MODEL", help="also self-test this model here")] = None,
) -> int:
    """What this box can run, and what to install. Exit status 2 when something is broken."""
    from .doctor import diagnose, format_report

    report = diagnose(model)
    _say(json.dumps(report, ensure_ascii=False) if as_json else format_report(report))
    return 2 if report["problems"] else 0


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for everything the demo writes")] = Path(
        "visionad-demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="your own parts, laid out as MVTec-AD [default: rendered parts]"),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="good pictures to enrol of each class")] = 4,
    threads: ThreadsOption = None,
) -> None:
    """The main job end to end, offline: export, enrol, calibrate, inspect, and a report to look at."""
    from .demo.run import run_demo

    summary = run_demo(out, data=data, shots=shots, threads=threads, say=_say, progress=progress)
    _say(summary)
