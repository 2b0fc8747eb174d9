#!/usr/bin/env python3
"""Check that a release's tag is the package's version: `release_check.py v1.2.3`."""

import sys

from visionad_runtime import __version__

if sys.argv[1:] != [f"v{__version__}"]:
    sys.exit(f"expected the tag v{__version__}, the package's version, got {' '.join(sys.argv[1:])}")
