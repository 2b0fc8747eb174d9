"""Which hosts and origins a request may name.

A web page of another site can send requests to a service on the same machine or network. Two checks keep such pages out. The header
``Host`` must be a name of this service: a page whose name was pointed at this service's address (DNS rebinding) still sends its own
name. The header ``Origin``, or ``Referer`` where a browser sends only that, must be an address of this service.
``X-Forwarded-Host`` and its like are not read, because any page can send them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ..errors import VisionADError
from .queue import RequestError

DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing. A link on another site's page sends them with a ``Referer``."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(?:%[\w%.~-]+)?\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?")


class HostPort(NamedTuple):
    """A host in one spelling, and its port where one was given."""

    host: str
    port: int | None


def parse_host(text: str) -> HostPort | None:
    """Parse ``HOST[:PORT]``: lower case, no trailing dot, addresses in their shortest form.

    Args:
        text: value of a ``Host`` header, or the part of a URL between ``//`` and the path.

    Returns:
        ``None`` if it is malformed.
    """
    match = _HOST.fullmatch(text.strip(" \t"))
    if match is None:
        return None
    host, port = normalize_host(match["name"]), int(match["port"] or 0)
    return HostPort(host, port if match["port"] else None) if host and port <= 65535 else None


def normalize_host(name: str) -> str:
    """Return a host's name or address in one spelling, empty if there is none."""
    name = name.strip("[]").lower()
    name = name[:-1] if name.endswith(".") else name
    try:
        address = ipaddress.ip_address(name.split("%", 1)[0])
    except ValueError:
        return name
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def is_loopback(host: str) -> bool:
    """Whether a host, in the spelling of :func:`normalize_host`, can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AccessPolicy:
    """Hosts and origins that are let in.

    Args:
        listening: host that the service listens at, as given by the user.
        hosts: further names or addresses, without a port.
        origins: further origins, such as ``https://line.example``. Their hosts are allowed too.

    Raises:
        VisionADError: a host or an origin is malformed.
    """

    def __init__(self, listening: str = "127.0.0.1", hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self.hosts = {normalize_host(listening)}
        if not is_loopback(normalize_host(listening)):
            self.hosts.add(normalize_host(socket.gethostname()))
        for host in hosts:
            self.hosts.add(_given_host(host))
        self.origins = {_given_origin(origin) for origin in origins}
        self.hosts |= {host.host for _, host in self.origins}

    def check(self, method: str, http_version: str, headers: Headers, local_address: str | None) -> None:
        """Let a request in.

        Args:
            method: HTTP method.
            http_version: such as ``1.1``.
            headers: of the request.
            local_address: address of this machine at which the connection came in.

        Raises:
            RequestError: 400 if ``Host`` is missing, repeated or malformed, 403 if host or origin is not allowed.
        """
        given = headers.getlist("host")
        if not given and http_version == "1.0" and "origin" not in headers:
            return  # probes of load balancers; browsers always name a host
        host = parse_host(given[0]) if len(given) == 1 else None
        if host is None:
            raise RequestError(400, f"expected one header Host with a name or address, got {given or 'none'}")
        self._check_host(host, normalize_host(local_address or ""))
        for origin in headers.getlist("origin"):
            self._check_origin(origin, host)
        if method in SAFE_METHODS or "origin" in headers:
            return
        if (referer := headers.get("referer")) is not None:
            parts = urlsplit_or_none(referer)
            self._check_origin(f"{parts[0]}://{parts[1]}" if parts else referer, host)
        elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RequestError(403, "asked by a page of another site; only pages of this service's own address may")

    def _check_host(self, host: HostPort, local: str) -> None:
        # A page cannot be served under an address that is not its own, so the address that the connection came in at is good.
        if host.host in self.hosts or host.host == local:
            return
        if is_loopback(host.host) and (is_loopback(local) or any(map(is_loopback, self.hosts))):
            return
        raise RequestError(
            403,
            f"Host {host.host!r} is no name of this service; use its address, or start it with --allow-host {host.host}",
        )

    def _check_origin(self, origin: str, host: HostPort) -> None:
        parsed = _parse_origin(origin)
        if parsed is not None:
            scheme, page = parsed
            if parsed in self.origins or page == HostPort(host.host, host.port or DEFAULT_PORTS[scheme]):
                return
        hint = f"; to allow them, start the service with --allow-origin {origin}" if parsed else ""
        raise RequestError(
            403, f"asked by a page of {origin[:200]}; only pages of this service's own address may{hint}"
        )


def urlsplit_or_none(url: str) -> tuple[str, str] | None:
    """Scheme and host of a URL, ``None`` where it is malformed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.scheme, parts.netloc


def _parse_origin(origin: str) -> tuple[str, HostPort] | None:
    parts = urlsplit_or_none(origin.strip())
    if parts is None or parts[0] not in DEFAULT_PORTS or origin.strip().lower() != f"{parts[0]}://{parts[1]}".lower():
        return None
    page = parse_host(parts[1])
    return None if page is None else (parts[0], HostPort(page.host, page.port or DEFAULT_PORTS[parts[0]]))


def _given_host(text: str) -> str:
    name = text.strip()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")  # as browsers send it
        except UnicodeError:
            name = ""
    parsed = parse_host(f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name)
    if parsed is None or parsed.port is not None:
        raise VisionADError(f"--allow-host: expected a name or address without scheme and port, got {text!r}")
    return parsed.host


def _given_origin(text: str) -> tuple[str, HostPort]:
    parsed = _parse_origin(text.strip().removesuffix("/"))
    if parsed is None:
        raise VisionADError(f"--allow-origin: expected an origin such as https://line.example:8443, got {text!r}")
    return parsed
