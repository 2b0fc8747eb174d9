#!/usr/bin/env python3
"""Inspect frames of a camera or a video: ``python opencv_camera.py MODEL BANK SOURCE [EVERY]``.

``SOURCE`` is a camera number or anything else that ``cv2.VideoCapture`` opens, such as a file or an RTSP address. Every
``EVERY``-th frame is inspected (default: each). One JSON line per frame goes to stdout.
"""

import json
import sys
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import Inspector


def frames(source: str, every: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the number and the BGR pixels of every ``every``-th frame, until the source ends."""
    camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        if not camera.isOpened():
            sys.exit(f"{source}: expected a camera or video that OpenCV opens; check the number, path or address")
        number = 0
        while camera.grab():  # cheap: only the frames that are inspected are decoded
            if number % every == 0:
                received, frame = camera.retrieve()
                if received:
                    yield number, frame.astype(np.uint8, copy=False)
            number += 1
    finally:
        camera.release()


def main(model: str, bank: str, source: str, every: str = "1") -> None:
    """Inspect until the source ends."""
    with Inspector.open(model, bank) as inspector:
        for number, frame in frames(source, int(every)):
            inspector.refresh()  # enrollment and calibration by other processes take effect here
            print(json.dumps(inspector.inspect(frame).to_dict(f"frame {number}")), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
