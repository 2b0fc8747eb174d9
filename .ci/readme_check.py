#!/usr/bin/env python3
"""The README's Python lines, run on the demo's folder as a reader would: they must print what stands below them."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

demo = Path(sys.argv[1]).resolve()
text = (Path(__file__).parents[1] / "README.md").read_text()
found = re.search(r"```python\n(.*?)```\s+```\n(.*?)```", text, re.DOTALL)
assert found, "README.md has no Python lines with their output below"
code, expected = found.groups()
with tempfile.TemporaryDirectory() as place:
    (Path(place) / "visionad-demo").symlink_to(demo)
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
if done.stdout != expected:
    sys.exit(f"README.md says that its Python lines print\n{expected}and they print\n{done.stdout}{done.stderr}")
