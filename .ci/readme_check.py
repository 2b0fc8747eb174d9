#!/usr/bin/env python3
"""Run the README's Python block on the demo's output; it must print the block below it."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

demo = Path(sys.argv[1]).resolve()
text = (Path(__file__).parents[1] / "README.md").read_text()
blocks = re.search(r"```python\n(.*?)```\s+```\n(.*?)```", text, re.DOTALL)
assert blocks, "README.md: expected a Python block with its output below"
code, expected = blocks.groups()
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "visionad-demo").symlink_to(demo)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
if done.stdout != expected:
    sys.exit(f"README.md: expected its Python block to print\n{expected}got\n{done.stdout}{done.stderr}")
