"""VisionAD in PyTorch: the method as the paper tells it. It defines what is right; the runtime is measured by it."""

from .backbone import REGISTRY, Backbone, MethodError, Spec, SpecError, WeightsError, default_spec, load
from .method import VIEWS, ClassBank, PictureError, Route, route
from .reference import Picture, Reference, RefResult

__all__ = [
    "REGISTRY",
    "VIEWS",
    "Backbone",
    "ClassBank",
    "MethodError",
    "Picture",
    "PictureError",
    "RefResult",
    "Reference",
    "Route",
    "Spec",
    "SpecError",
    "WeightsError",
    "default_spec",
    "load",
    "route",
]
