"""The ``visionad`` command. Exit status: 0 success, 1 internal error, 2 user error (one line on stderr)."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._release import __version__
from ..errors import VisionADError, import_error_message, is_own_module
from .commands.audit import audit_verify
from .commands.bank import bank_add, bank_audit, bank_confirm, bank_info, bank_remove, bank_undo, bank_verify
from .commands.bank_roi import bank_rebuild, bank_roi
from .commands.bank_threshold import bank_threshold
from .commands.batch import batch, compare
from .commands.bench import bench_command
from .commands.build import build_command
from .commands.calibrate import calibrate
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.evaluate import EvalCommand, eval_command
from .commands.export import export_command
from .commands.fleet import bank_prune, bank_pull, bank_push, keygen, model_info, model_pull, model_push, store_log
from .commands.parity import parity_command  # light: torch is imported only when it runs
from .commands.predict import predict
from .commands.qualify import qualify
from .commands.replay import replay
from .commands.report import report
from .commands.serve import serve
from .commands.station import station as station_command
from .commands.sync import sync
from .commands.tune import tune
from .commands.watch import watch
from .console import complain, say, set_verbosity

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bank_app = typer.Typer(help="Enroll, remove and check good parts.", rich_markup_mode=None)
app.add_typer(bank_app, name="bank")
audit_app = typer.Typer(help="Check the audit of a station.", rich_markup_mode=None)
audit_app.callback()(lambda: None)  # keeps `verify` a word of its own
app.add_typer(audit_app, name="audit")
model_app = typer.Typer(help="Publish, download and check model folders.", rich_markup_mode=None)
app.add_typer(model_app, name="model")
COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "watch": watch,
    "serve": serve,
    "calibrate": calibrate,
    "replay": replay,
    "qualify": qualify,
    "tune": tune,
    "batch": batch,
    "compare": compare,
    "keygen": keygen,
    "sync": sync,
    "doctor": doctor,
    "demo": demo,
    "export": export_command,
    "parity": parity_command,
    "build": build_command,
    "bench": bench_command,
    "station": station_command,
    "report": report,
}
BANK_COMMANDS: dict[str, Callable[..., Any]] = {
    "add": bank_add,
    "remove": bank_remove,
    "confirm": bank_confirm,
    "undo": bank_undo,
    "info": bank_info,
    "verify": bank_verify,
    "audit": bank_audit,
    "threshold": bank_threshold,
    "roi": bank_roi,
    "rebuild": bank_rebuild,
    "push": bank_push,
    "pull": bank_pull,
    "log": store_log,
    "prune": bank_prune,
}
MODEL_COMMANDS: dict[str, Callable[..., Any]] = {
    "push": model_push,
    "pull": model_pull,
    "log": store_log,
    "info": model_info,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.command("eval", cls=EvalCommand)(eval_command)
for name, command in BANK_COMMANDS.items():
    bank_app.command(name)(command)
audit_app.command("verify")(audit_verify)
for name, command in MODEL_COMMANDS.items():
    model_app.command(name)(command)

INTERRUPTED = 130
"""Exit status that the parser returns after Ctrl-C."""
INTERRUPTION = "interrupted; what was finished is kept"


def print_version(requested: bool) -> None:
    """Print the version and exit, if ``--version`` is given."""
    if requested:
        say(f"visionad {__version__}")
        raise typer.Exit


def global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", callback=set_verbosity, help="Report choices and their reasons on stderr, such as the backend."
        ),
    ] = False,
) -> None:
    """Few-shot visual inspection: enroll 1 to 8 good parts, then inspect."""


app.callback()(global_options)


def main() -> None:
    """Run the command line of this process and exit."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-, a service)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process lives
        else:  # JSON is UTF-8 everywhere; file names that are not UTF-8 are escaped as in JSON
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


_UNWRITABLE = {getattr(errno, name, None) for name in ("ENOSPC", "EFBIG", "EDQUOT", "EIO", "EROFS")} - {None}
"""Errors of an output that is a file: Python's own names no file."""


def run(args: Sequence[str]) -> int:
    """Run one command line.

    Args:
        args: arguments without the program's name.

    Returns:
        The exit status.
    """
    args = list(args)
    if args in ([], ["bank"], ["audit"], ["model"]):
        args.append("--help")
    if "" in args:  # as a path, it would mean the working folder and everything below
        return complain("an argument is empty (a variable that is not set?); give a path or a name in its place")
    try:
        status = app(args=args, prog_name="visionad", standalone_mode=False)
        sys.stdout.flush()
    except VisionADError as exc:
        return complain(str(exc))
    except (BrokenPipeError, SystemExit):
        drop_stdout()  # the reader closed the pipe (| head), which the parser turns into an exit; that is no error
        return 0
    except KeyboardInterrupt:  # outside the parser, which handles its own
        status = INTERRUPTED
    except MemoryError:
        return complain("out of memory; use smaller images, a smaller bank or a smaller --batch")
    except Exception as exc:
        # Importing a native library turns Ctrl-C into an ImportError.
        if isinstance(exc.__cause__, KeyboardInterrupt):
            return complain(INTERRUPTION, INTERRUPTED)
        if hasattr(exc, "format_message"):  # a usage error of the command-line parser
            return complain(exc.format_message())
        if isinstance(exc, ImportError) and not is_own_module(exc):
            return complain(import_error_message(exc))
        if isinstance(exc, OSError) and exc.filename:
            return complain(f"{exc.filename}: {exc.strerror}")
        if isinstance(exc, FileNotFoundError) and _is_adrift():
            return complain("the working folder was deleted; go to one that exists, and run again")
        if isinstance(exc, OSError) and exc.errno in _UNWRITABLE:
            drop_stdout()
            return complain(f"the output could not be written: {exc.strerror}; free space where it goes, and run again")
        raise
    if status == INTERRUPTED:
        return complain(INTERRUPTION, INTERRUPTED)
    return status if isinstance(status, int) else 0


def _is_adrift() -> bool:
    """Return whether the working folder is gone, so that no relative path leads anywhere."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def drop_stdout() -> None:
    """Discard what is still buffered for stdout; flushing it at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
