"""What the export folds: the same tokens from fewer operations, the network as it was before, nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("torch", reason="exporting takes the export extra")

import onnx_ir as ir
import torch
from timm.models.vision_transformer import Attention, LayerScale, VisionTransformer
from torch import nn
from visionad_export.graph.fold import folded, slice_after_sum

SMALL: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 14,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 0,
}


def network(**changes: Any) -> Any:
    """A small ViT with LayerScale, every tensor of it random and none of them small."""
    torch.manual_seed(3)
    net = VisionTransformer(**(SMALL | {"init_values": 1.0} | changes)).eval()
    with torch.no_grad():
        for name, one in net.named_parameters():
            one.add_(torch.randn_like(one) * 0.5)
            if name.endswith("gamma"):
                one.clamp_(-1, 1)
    return net


def tokens(net: Any) -> Any:
    with torch.no_grad():
        return net.forward_features(torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)))


def modules(net: Any) -> list[str]:
    return [type(module).__name__ for module in net.modules()]


def test_folded_blocks_give_the_same_tokens() -> None:
    net = network()
    wanted, before = tokens(net), {name: one.clone() for name, one in net.state_dict().items()}
    kinds = modules(net)
    with folded(net):
        assert "LayerScale" not in modules(net) and kinds.count("LayerScale") == 4
        for block in net.blocks:
            q, k, v = block.attn.qkv.bias.chunk(3)
            assert q.any() and not k.any() and not v.any()
        found = tokens(net)
        assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert modules(net) == kinds and torch.equal(tokens(net), wanted)
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())


def test_the_network_comes_back_after_a_failure() -> None:
    net = network()
    wanted = tokens(net)
    with pytest.raises(KeyboardInterrupt), folded(net):
        raise KeyboardInterrupt
    assert torch.equal(tokens(net), wanted)


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"init_values": None}, {"proj_bias": False}])
def test_what_is_there_is_folded(changes: dict[str, Any]) -> None:
    net = network(**changes)
    wanted = tokens(net)
    with folded(net):
        assert "LayerScale" not in modules(net)
        assert all(block.attn.qkv.bias is None or not block.attn.qkv.bias[48:].any() for block in net.blocks)
        torch.testing.assert_close(tokens(net), wanted, rtol=2e-5, atol=2e-5)


def test_what_scales_up_stays_outside_the_product() -> None:
    net = network()
    with torch.no_grad():
        net.blocks[0].ls1.gamma[5] = -1.5
    wanted = tokens(net)
    with folded(net):
        assert isinstance(net.blocks[0].ls1, LayerScale) and modules(net).count("LayerScale") == 1
        torch.testing.assert_close(tokens(net), wanted, rtol=2e-5, atol=2e-5)


class OtherAttention(Attention):  # type: ignore[misc]
    """As any that does something else on the way."""


def other_kind(block: Any) -> None:
    block.attn.__class__ = OtherAttention


def a_gate(block: Any) -> None:
    block.attn.gate = nn.Linear(48, 48)


def a_norm_of_keys(block: Any) -> None:
    block.attn.k_norm = nn.LayerNorm(16)


def a_norm_behind(block: Any) -> None:
    block.attn.norm = nn.LayerNorm(48)


@pytest.mark.parametrize("spoil", [other_kind, a_gate, a_norm_of_keys, a_norm_behind])
def test_other_attention_is_left_as_it_is(spoil: Callable[[Any], None]) -> None:
    """Its block's second LayerScale is folded all the same, and so is all of the other block."""
    net = network()
    spoil(net.blocks[0])
    wanted, first, mlp = tokens(net), net.blocks[0].attn, net.blocks[0].mlp.fc2
    parts = first.qkv, first.proj, net.blocks[0].ls1
    with folded(net):
        assert (first.qkv, first.proj, net.blocks[0].ls1) == parts and net.blocks[0].mlp.fc2 is not mlp
        assert modules(net).count("LayerScale") == 1
        torch.testing.assert_close(tokens(net), wanted, rtol=2e-5, atol=2e-5)


# -- sums of what is cut alike ------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """As the backbone adds its layers: patches behind ``first``, and the class token."""

    def __init__(self, starts: tuple[int, ...] = (2, 2, 2)) -> None:
        super().__init__()
        self.starts = starts

    def forward(self, x: Any) -> tuple[Any, Any]:
        """(N, 7, D) → patches, class token."""
        layers = [x * 3.1, x.tanh(), x - 0.7]
        patches, prefixes = layers[0][:, self.starts[0] : self.starts[0] + 5], layers[0][:, :2]
        for layer, start in zip(layers[1:], self.starts[1:], strict=True):
            patches, prefixes = patches + layer[:, start : start + 5], prefixes + layer[:, :2]
        return patches / 3, (prefixes / 3)[:, 0]


def exported(module: nn.Module) -> Any:
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 7, 4),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    return program.model


def run(model: Any, path: Path) -> list[Any]:
    ir.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 7, 4)).astype(np.float32)
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def count(model: Any, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph)


def test_layers_are_added_whole_and_slice_after_sum(tmp_path: Path) -> None:
    model = exported(Layers())
    before = run(model, tmp_path / "before.onnx")
    assert (count(model, "Slice"), count(model, "Add")) == (6, 4)
    slice_after_sum(model)
    assert (count(model, "Slice"), count(model, "Add")) == (2, 2)
    for ours, theirs in zip(run(model, tmp_path / "after.onnx"), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_cut_elsewhere_is_added_as_before(tmp_path: Path) -> None:
    """The third layer's patches begin at another token."""
    model = exported(Layers((2, 2, 1)))
    before = run(model, tmp_path / "before.onnx")
    slice_after_sum(model)
    assert (count(model, "Slice"), count(model, "Add")) == (3, 3)
    for ours, theirs in zip(run(model, tmp_path / "after.onnx"), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
