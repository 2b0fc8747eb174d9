"""Backbone engines: image -> patch and class tokens. ``base`` has the interface, ``registry`` the table of backends.

Every other module or package here is a backend. A backend is loaded only when it is chosen.
"""

from .base import BackendSpec, Engine, Probe, Tokens
from .registry import auto_backends, backend_spec, backends

__all__ = [
    "BackendSpec",
    "Engine",
    "Probe",
    "Tokens",
    "auto_backends",
    "backend_spec",
    "backends",
]
