"""The backbone's graph in ONNX Runtime's own operators for GPUs, where its optimiser leaves attention and residuals in pieces.

The model file is plain ONNX, which every backend reads and TensorRT fuses by itself. ONNX Runtime does not know attention as timm
writes it, and would write out all heads' scores of all tokens to read them again for the softmax and once more for the product. So

* attention, from the one layer that gives q, k and v, becomes ``Split`` and ``MultiHeadAttention`` (flash attention);
  a bias that is 0 for k and v, as the export leaves it, is added to q alone, behind ``Split``;
* a residual sum before a LayerNorm becomes ``SkipLayerNormalization``, which takes in the bias of what is added;
* a bias before a GELU becomes ``BiasGelu``.

What looks otherwise stays as it is. Whether it is right, the self-test says at every start.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..onnxfile import (
    GRAPH,
    INITIALIZER,
    MICROSOFT,
    NODE,
    OPSETS,
    OUTPUT,
    Node,
    Tensor,
    bytes_field,
    constant,
    fields,
    opset,
    read_node,
    read_tensor,
    text,
    write_constant,
    write_node,
    write_reference,
    write_tensor,
)

SMALL = 4096
"""Bytes up to which a constant is copied; larger ones stay in the model's file."""


class Fused(NamedTuple):
    """``model``: bytes of a ModelProto that refers to the file for its weights; how many of each were replaced."""

    model: bytes
    attentions: int
    norms: int


def fuse(data: memoryview, file: str) -> Fused:
    """Rewrite the model that is the content of the ONNX file of that name.

    Raises:
        ValueError: it is none, or holds what is not handled.
    """
    try:
        return _fuse(data, file)
    except (IndexError, StopIteration, TypeError) as exc:  # a field is missing, or of another kind
        raise ValueError(f"not an ONNX model as exported here ({exc!r})") from None


def _fuse(data: memoryview, file: str) -> Fused:
    outer = list(fields(data))
    graph = _Graph(data, next(f.payload for f in outer if f.number == GRAPH))
    attentions = sum(graph.fuse_attention(n) for n in list(graph.nodes) if n.kind == "Softmax")
    # of tokens (B, N, D), as there are where there is attention; elsewhere it may be of pictures
    norms = sum(graph.fuse_norm(n) for n in list(graph.nodes) if attentions and n.kind == "LayerNormalization")
    for node in [n for n in graph.nodes if n.kind == "Gelu"]:
        graph.fuse_gelu(node)
    rest = [bytes(data[f.place]) for f in outer if f.number != GRAPH]
    rest.append(bytes_field(OPSETS, opset(MICROSOFT, 1)))
    return Fused(b"".join([*rest, bytes_field(GRAPH, graph.written(file))]), attentions, norms)


class _Graph:
    """A GraphProto that is being rewritten: nodes in order, and who makes and uses each value."""

    def __init__(self, data: memoryview, place: slice) -> None:
        self._data = data
        self._fields = list(fields(data, place))
        self.nodes = [read_node(data, f.payload) for f in self._fields if f.number == NODE]
        tensors = [read_tensor(data, f.payload) for f in self._fields if f.number == INITIALIZER]
        self._tensors = {t.name: t for t in tensors}
        # of a ValueInfoProto, the name is field 1
        self._outputs = [
            text(data, next(n.payload for n in fields(data, f.payload) if n.number == 1))
            for f in self._fields
            if f.number == OUTPUT
        ]
        self._new: list[bytes] = []
        self._index()

    def _index(self) -> None:
        self._maker = {name: node for node in self.nodes for name in node.outputs}
        self._users: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                self._users[name].append(node)

    def _replace(self, node: Node, by: list[Node]) -> None:
        """Put others in its place. Nodes that nobody uses then are left out when the graph is written."""
        at = next(i for i, n in enumerate(self.nodes) if n is node)
        self.nodes[at : at + 1] = by
        self._index()

    def _made_by(self, name: str, kind: str) -> Node | None:
        node = self._maker.get(name)
        return node if node is not None and node.kind == kind else None

    def _used_by(self, name: str, kind: str) -> Node | None:
        """Its only user, if that is one of this kind."""
        users = self._users[name]
        return users[0] if len(users) == 1 and users[0].kind == kind and name not in self._outputs else None

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else constant(self._data, tensor)

    # -- attention

    def fuse_attention(self, softmax: Node) -> bool:
        """softmax(scale · q · kᵀ) · v, of q, k, v that are the thirds of one tensor (B, N, 3 · heads · width)."""
        scores = self._made_by(softmax.inputs[0], "MatMul")
        product = self._used_by(softmax.outputs[0], "MatMul")
        if scores is None or product is None or softmax.attributes.get("axis", -1) not in (-1, 3):
            return False
        scaled, turned = self._made_by(scores.inputs[0], "Mul"), self._made_by(scores.inputs[1], "Transpose")
        swapped = self._used_by(product.outputs[0], "Transpose")
        merged = swapped and self._used_by(swapped.outputs[0], "Reshape")
        if (
            scaled is None
            or turned is None
            or merged is None
            or swapped is None
            or product.inputs[0] != softmax.outputs[0]
        ):
            return False
        scale = self._constant(scaled.inputs[1])
        parts = [self._third(name) for name in (scaled.inputs[0], turned.inputs[0], product.inputs[1])]
        if scale is None or scale.size != 1 or [p and p[1] for p in parts] != [0, 1, 2]:
            return False
        if turned.attributes.get("perm") != [0, 1, 3, 2] or swapped.attributes.get("perm") != [0, 2, 1, 3]:
            return False
        whole = {p[0] for p in parts if p}
        split = self._heads(whole.pop()) if len(whole) == 1 else None
        if split is None:
            return False
        linear, heads = split
        out = merged.outputs[0]
        thirds = [f"{out}/{third}" for third in "qkv"]
        attributes = {"num_heads": heads, "scale": float(scale.astype(np.float32).item())}
        attention = Node("MultiHeadAttention", thirds, [out], attributes, MICROSOFT)
        biased = self._bias_of_query(linear, f"{out}/bias")
        if biased is None:
            before = [Node("Split", [linear], thirds, {"axis": -1, "num_outputs": 3})]
        else:
            plain = [f"{out}/q without bias", *thirds[1:]]
            before = [
                Node("Split", [biased.value], plain, {"axis": -1, "num_outputs": 3}),
                Node("Add", [plain[0], biased.bias], thirds[:1]),
            ]
        self._replace(merged, [*before, attention])
        return True

    def _third(self, name: str) -> tuple[str, int] | None:
        """Of which tensor this is the n-th entry along its first axis, and n."""
        squeezed = self._made_by(name, "Squeeze")
        sliced = squeezed and self._made_by(squeezed.inputs[0], "Slice")
        if sliced is None or squeezed is None or len(sliced.inputs) < 4 or len(squeezed.inputs) < 2:
            return None
        numbers = [self._constant(n) for n in (*sliced.inputs[1:4], squeezed.inputs[1])]
        if any(n is None or n.size != 1 for n in numbers):
            return None
        begin, end, axis, gone = (int(n.item()) for n in numbers if n is not None)
        return (sliced.inputs[0], begin) if (end - begin, axis, gone) == (1, 0, 0) else None

    def _heads(self, name: str) -> tuple[str, int] | None:
        """The tensor (B, N, 3 · heads · width) of which this is (3, B, heads, N, width), and its heads."""
        turned = self._made_by(name, "Transpose")
        split = turned and self._made_by(turned.inputs[0], "Reshape")
        shape = split and self._constant(split.inputs[1])
        if turned is None or split is None or shape is None or turned.attributes.get("perm") != [2, 0, 3, 1, 4]:
            return None
        sizes = shape.tolist()
        return (split.inputs[0], int(sizes[3])) if len(sizes) == 5 and sizes[2] == 3 and sizes[3] > 0 else None

    def _bias_of_query(self, name: str, bias: str) -> _Biased | None:
        """Where this is the sum of q, k, v and a bias that is 0 but for q: the summand, and a new constant of that name."""
        added = self._made_by(name, "Add")
        tensor = None if added is None else self._tensors.get(added.inputs[1])
        values = None if tensor is None else constant(self._data, tensor)
        if added is None or tensor is None or tensor.raw is None or values is None or values.ndim != 1:
            return None
        width = len(values) // 3
        if len(values) % 3 or values[width:].any():
            return None
        raw = bytes(self._data[tensor.raw])
        self._new.append(write_tensor(bias, tensor.kind, [width], raw[: len(raw) // 3]))
        return _Biased(added.inputs[0], bias)

    # -- residual and LayerNorm

    def fuse_norm(self, norm: Node) -> bool:
        """LayerNorm(a + b), and the sum itself; where b is (c + bias) · scale, as LayerNorm(a + c · scale + bias · scale)."""
        total = self._made_by(norm.inputs[0], "Add")
        if total is None or len(norm.inputs) != 3 or norm.attributes.get("axis", -1) not in (-1, 2):
            return False
        if any(name in self._tensors for name in total.inputs):
            return False
        inputs, before, shift = list(total.inputs), list[Node](), list[str]()
        for side, name in enumerate(total.inputs):
            branch = self._branch(name)
            if branch is not None:
                shift = [f"{name}/shift"]
                self._new.append(write_constant(shift[0], branch.shift))
                inputs[side] = branch.value
                if branch.scale is not None:
                    inputs[side] = f"{name}/scaled"
                    before = [Node("Mul", [branch.value, branch.scale], [inputs[side]])]
                break  # it takes one
        outputs = [norm.outputs[0], "", "", total.outputs[0]]
        attributes = {"epsilon": float(norm.attributes.get("epsilon", 1e-5))}  # type: ignore[arg-type]
        skip = Node("SkipLayerNormalization", [*inputs, *norm.inputs[1:], *shift], outputs, attributes, MICROSOFT)
        self._replace(norm, [])
        self._replace(total, [*before, skip])
        return True

    def _branch(self, name: str) -> _Branch | None:
        """(value + bias) · scale that one sum uses, in float32."""
        scaled = self._maker.get(name) if len(self._users[name]) == 1 else None
        factor, scale = None, None
        if scaled is not None and scaled.kind == "Mul":
            factor, scale = self._vector(scaled.inputs[1]), scaled.inputs[1]
            if factor is None or len(self._users[scaled.inputs[0]]) != 1:
                return None
            name = scaled.inputs[0]
        added = self._made_by(name, "Add")
        bias = None if added is None else self._vector(added.inputs[1])
        if added is None or bias is None:
            return None
        return _Branch(added.inputs[0], bias if factor is None else bias * factor, scale)

    def _vector(self, name: str) -> NDArray[np.float32] | None:
        values = self._constant(name)
        return values if values is not None and values.ndim == 1 and values.dtype == np.float32 else None

    # -- GELU

    def fuse_gelu(self, gelu: Node) -> None:
        """GELU(a + bias), by the error function."""
        added = self._made_by(gelu.inputs[0], "Add")
        bias = None if added is None else self._constant(added.inputs[1])
        if added is None or bias is None or bias.ndim != 1 or gelu.attributes.get("approximate", "none") != "none":
            return
        if len(self._users[added.outputs[0]]) == 1 and added.outputs[0] not in self._outputs:
            self._replace(gelu, [Node("BiasGelu", added.inputs, gelu.outputs, domain=MICROSOFT)])

    # -- writing

    def written(self, file: str) -> bytes:
        """The GraphProto: what leads to its outputs."""
        live, kept = set(self._outputs), list[bytes]()
        for node in reversed(self.nodes):
            if not live.isdisjoint(node.outputs):
                live.update(node.inputs)
                kept.append(write_node(node) if node.place is None else bytes(self._data[node.place]))
        nodes = [bytes_field(NODE, node) for node in reversed(kept)]
        rest = [bytes(self._data[f.place]) for f in self._fields if f.number not in (NODE, INITIALIZER)]
        weights = [self._weights(t, file) for name, t in self._tensors.items() if name in live]
        return b"".join([*nodes, *(bytes_field(INITIALIZER, w) for w in (*weights, *self._new)), *rest])

    def _weights(self, tensor: Tensor, file: str) -> bytes:
        raw = tensor.raw
        if raw is None or raw.stop - raw.start <= SMALL:
            return bytes(self._data[tensor.place])
        return write_reference(tensor, file)


class _Biased(NamedTuple):
    """value + bias, by name."""

    value: str
    bias: str


class _Branch(NamedTuple):
    """value · scale + shift; ``value`` and ``scale`` are names, ``shift`` float32 (D,)."""

    value: str
    shift: NDArray[np.float32]
    scale: str | None
