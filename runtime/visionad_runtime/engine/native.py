"""What native libraries print by themselves, past Python and past their own loggers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def capture_fd(stream: int, into: list[str]) -> Iterator[None]:
    """What anything in this process writes to a standard stream goes into a list, line by line: TensorRT-RTX warns amid a
    command's JSON, ONNX Runtime says on stderr alone which library it did not find."""
    python = sys.stdout if stream == STDOUT else sys.stderr
    if python is not None:  # there is none in a service
        python.flush()
    try:
        kept = os.dup(stream)
    except OSError:  # there is none (a service): nothing to protect
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                if python is not None:
                    python.flush()
            os.dup2(kept, stream)
            os.close(kept)
            file.seek(0)
            into.extend(line for line in file.read().decode(errors="replace").splitlines() if line.strip())


@contextmanager
def silence(into: list[str]) -> Iterator[None]:
    """:func:`capture_fd` for both, and for what Python code prints wherever ``sys.stdout`` may lead."""
    said = io.StringIO()
    try:
        with capture_fd(STDOUT, into), capture_fd(STDERR, into), contextlib.redirect_stdout(said):
            yield
    finally:
        into.extend(line for line in said.getvalue().splitlines() if line.strip())
