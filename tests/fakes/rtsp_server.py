"""An RTSP server whose images show when they were made: ``/usr/bin/python3 rtsp_server.py PORT``.

It runs under the system's Python, to which GStreamer's bindings belong. Each image is a row of 32 squares, black or white: the bits
of ``time.monotonic`` in milliseconds, the highest first. Each client gets a pipeline of its own.
"""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS, SIDE, HEIGHT = 32, 16, 64
WIDTH = BITS * SIDE
PERIOD_MS = 40
LAUNCH = (
    f"( appsrc name=source is-live=true do-timestamp=true format=time "
    f"caps=video/x-raw,format=GRAY8,width={WIDTH},height={HEIGHT},framerate={1000 // PERIOD_MS}/1 "
    "! videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=4000 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


def image() -> bytes:
    """Return the pixels of an image that is made now."""
    now = int(time.monotonic() * 1000) % 2**BITS
    row = b"".join(bytes([235 if now >> (BITS - 1 - bit) & 1 else 16]) * SIDE for bit in range(BITS))
    return row * HEIGHT


def feed(_factory: object, media: "GstRtspServer.RTSPMedia") -> None:
    """Push images into the pipeline of a client until it goes."""
    source = media.get_element().get_child_by_name("source")

    def push() -> bool:
        return source.emit("push-buffer", Gst.Buffer.new_wrapped(image())) == Gst.FlowReturn.OK

    def start(_source: object, _size: int) -> None:
        source.disconnect(waiting)
        GLib.timeout_add(PERIOD_MS, push)

    waiting = source.connect("need-data", start)


def main(port: str) -> None:
    """Serve until the process is ended."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(LAUNCH)
    factory.connect("media-configure", feed)
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(sys.argv[1])
