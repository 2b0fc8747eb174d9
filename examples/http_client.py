#!/usr/bin/env python3
"""A client of ``visionad serve`` without dependencies: ``python http_client.py URL IMAGE... [--class NAME]``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen


def inspect(url: str, image: Path, class_name: str | None = None) -> dict[str, Any]:
    """Send an image file and return the object that ``visionad predict --json`` prints.

    Args:
        url: address of the service, such as ``http://127.0.0.1:8000``.
        image: file to inspect.
        class_name: skip routing.

    Raises:
        RuntimeError: the service refused the request or cannot be reached; the message says why.
    """
    query = {"name": image.name} | ({"class": class_name} if class_name else {})
    request = Request(f"{url}/inspect?{urlencode(query)}", data=image.read_bytes(), method="POST")
    try:
        with urlopen(request, timeout=60) as response:
            result: dict[str, Any] = json.load(response)
            return result
    except HTTPError as error:
        raise RuntimeError(f"{image}: {json.load(error)['error']} (status {error.code})") from None
    except URLError as error:
        raise RuntimeError(f"{url} cannot be reached: {error.reason}; start `visionad serve MODEL BANK`") from None


def main() -> int:
    """Print a line per image. Returns 1 if one was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--class", dest="class_name")
    options = parser.parse_args()
    status = 0
    for image in options.images:
        try:
            result = inspect(options.url.rstrip("/"), image, options.class_name)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        print(image, result["class"], result["verdict"], f"{result['score']:.4f}")
    return status


if __name__ == "__main__":
    sys.exit(main())
