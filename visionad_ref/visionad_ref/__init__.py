"""VisionAD in PyTorch: the method as the paper tells it. It defines what is right; the runtime is measured by it."""

from .backbone import REGISTRY, Backbone, MethodError, Spec, SpecError, WeightsError, default_spec, load
from .method import VIEWS, ClassBank, ImageError, Route, route
from .reference import ImageSource, Reference, RefResult

__all__ = [
    "REGISTRY",
    "VIEWS",
    "Backbone",
    "ClassBank",
    "ImageError",
    "ImageSource",
    "MethodError",
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
