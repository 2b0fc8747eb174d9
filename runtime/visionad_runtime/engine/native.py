"""Capture what native libraries print directly, past Python and past their own loggers."""

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
def capture_fd(stream: int, lines: list[str]) -> Iterator[None]:
    """Capture what any code of this process writes to a standard stream within the block.

    TensorRT-RTX prints warnings between the lines of a command's JSON. ONNX Runtime names a missing library only on stderr.

    Args:
        stream: :data:`STDOUT` or :data:`STDERR`.
        lines: Gets the lines that are not empty, after the block.
    """
    python = sys.stdout if stream == STDOUT else sys.stderr
    if python is not None:  # a service has none
        python.flush()
    try:
        original = os.dup(stream)
    except OSError:  # a service has none: nothing to protect
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
            os.dup2(original, stream)
            os.close(original)
            file.seek(0)
            lines.extend(line for line in file.read().decode(errors="replace").splitlines() if line.strip())


@contextmanager
def silence(lines: list[str]) -> Iterator[None]:
    """Capture both standard streams, and what Python code prints if ``sys.stdout`` leads elsewhere.

    Args:
        lines: Gets the lines that are not empty, after the block.
    """
    printed = io.StringIO()
    try:
        with capture_fd(STDOUT, lines), capture_fd(STDERR, lines), contextlib.redirect_stdout(printed):
            yield
    finally:
        lines.extend(line for line in printed.getvalue().splitlines() if line.strip())
