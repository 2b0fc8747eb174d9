"""VisionAD in PyTorch, as the paper describes it. It defines the right results; the runtime is compared with it."""

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
