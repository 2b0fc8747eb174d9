"""OpenVINO on the CPU (the default), an Intel GPU or an NPU, in a precision that the user chooses.

Importing this module does not import OpenVINO.

OpenVINO's default is the fastest precision of the device: bf16 on a CPU with AVX512_BF16 or AMX. Here the default is the model's
precision. The realized precision is read back from the compiled model: its property, and the type of each executed product.

In half precision the convolutions next to the image stay in fp32: the patch embedding of a ViT, the stem and the first block of a
CNN. Rounding their factors moves tokens more than rounding all others, and they are little work. OpenVINO 2026.4 has a mark that
keeps a convolution in fp32; it ignores the mark of a matrix product.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, VisionADError
from ..formats.manifest import ONNX_FILE
from .base import CPU, BackendSpec, Probe, Tokens, closed_error, run_isolated

if TYPE_CHECKING:
    from ..formats.manifest import ModelManifest, Precision

NAME = EXTRA = "openvino"
INSTALL = f"pip install 'visionad[{EXTRA}]'"

FP32_CONVOLUTIONS = 5
"""Convolutions that stay in fp32 if the rest is in half precision, counted from the image.

A ViT has one. EfficientNet-Lite0 has five before the image is a quarter of its size. They are little work. In bf16 they cause
most of the worst token's error with DeiT-Tiny (``docs/guides/openvino.md``).
"""

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NAMES = {hint: name for name, hint in _HINTS.items()}
_PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Types of a model's operations that are matrix products or convolutions."""
_EXECUTED = frozenset({"convolution", "fullyconnected", "matmul", "gemm", "scaleddotproductattention"})
"""Types of executed operations that are products. Other executed operations are fusions, which list their original operations.
But a product with a fused bias lists only the bias."""

_CONVOLUTION_IR = """<net name="convolution" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="{x_shape}" element_type="f32"/>
<output><port id="0" precision="FP32">{x}</port></output></layer>
<layer id="1" name="w" type="Parameter" version="opset1"><data shape="{w_shape}" element_type="f32"/>
<output><port id="0" precision="FP32">{w}</port></output></layer>
<layer id="2" name="y" type="{kind}" version="opset1"><data {attributes}/>
<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:bf16,f16"/></rt_info>
<input><port id="0" precision="FP32">{x}</port><port id="1" precision="FP32">{w}</port></input>
<output><port id="2" precision="FP32">{y}</port></output></layer>
<layer id="3" name="result" type="Result" version="opset1"><input><port id="0" precision="FP32">{y}</port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/><edge from-layer="2" from-port="2" to-layer="3" to-port="0"/></edges>
</net>"""
"""One convolution in OpenVINO's own format. Only files can carry the mark; Python cannot set it."""


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send an event to Intel.

    Raises:
        VisionADError: It is not installed, or does not load.
    """
    try:
        with _without_telemetry():
            module: Any = importlib.import_module("openvino")
    except Exception as exc:  # a broken native library raises anything
        if isinstance(exc, ModuleNotFoundError) and exc.name == "openvino":
            raise VisionADError(f"openvino is not installed: {INSTALL}") from None
        raise VisionADError(f"openvino does not load ({exc}): pip install --force-reinstall openvino") from None
    return module


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package ``openvino_telemetry`` from the import of OpenVINO, which then uses a stub."""
    name = "openvino_telemetry"
    modules: dict[str, Any] = sys.modules
    if name in modules:  # other code imported it: too late
        yield
        return
    modules[name] = None  # makes its import fail
    try:
        yield
    finally:
        del modules[name]


def devices() -> dict[str, str]:
    """Return the devices that OpenVINO finds here: name -> full name and precisions.

    Raises:
        VisionADError: OpenVINO is not installed, or does not load.
    """
    core = load_openvino().Core()
    descriptions = {}
    for name in core.available_devices:
        precisions = ", ".join(_precisions(core.get_property(name, "OPTIMIZATION_CAPABILITIES")))
        descriptions[name] = f"{str(core.get_property(name, 'FULL_DEVICE_NAME')).strip()}: {precisions}"
    return descriptions


class OpenVINOEngine:
    """Computes each row of a call alone, in one inference request. Calls run one at a time."""

    name = NAME
    batch_size = 1
    requires_device_pipeline = False
    device_engine = None

    def __init__(
        self,
        folder: Path,
        manifest: ModelManifest,
        threads: int | None = None,
        precision: Precision | None = None,
        device: str | None = None,
    ) -> None:
        """Compile the model.

        Args:
            folder: The model folder.
            manifest: Its manifest.
            threads: CPU threads, on a CPU. Default: OpenVINO's own choice.
            precision: ``fp32``, ``bf16`` or ``fp16``. Default: the model's own.
            device: A device as OpenVINO names it, such as ``cpu``, ``gpu``, ``gpu.1`` or ``npu``. Default: ``cpu``.

        Raises:
            VisionADError: OpenVINO or the device is missing, or the device does not have the precision.
            ModelError: The model cannot be compiled, or was compiled in another precision.
        """
        core = load_openvino().Core()
        where = choose_device(core.available_devices, device)
        self.precision = choose_precision(manifest, precision)
        check_capability(core.get_property(where, "OPTIMIZATION_CAPABILITIES"), self.precision, where)
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[self.precision]}
        if where == "CPU":
            # No pinning: two inspectors on one machine would be pinned to the same cores.
            config |= {"NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
            config |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        models, products, kept = _compile(core, folder / ONNX_FILE, manifest, where, config, self.precision)
        hint, types = _realized_hint(models), _realized_types(models, products)
        check_realized(types, hint, self.precision, where)
        self.info = {
            "openvino": _version(),
            "device": f"{where}, {core.get_property(where, 'FULL_DEVICE_NAME')}".strip(" ,"),
            "precision": describe_precision(types, self.precision, kept),
        }
        if where == "CPU":
            self.info["threads"] = str(threads or "OpenVINO's choice")
        self._lock = threading.Lock()
        self._requests = [model.create_infer_request() for model in models]

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._lock:
            if not self._requests:
                raise closed_error(NAME)
            try:
                rows = [self._encode_row(images[i : i + 1], class_token) for i in range(len(images))]
            except RuntimeError as exc:
                raise ModelError(f"{NAME} failed to run: {_last_line(exc)}") from None
        patch = np.concatenate([row[0] for row in rows])
        return Tokens(patch, np.concatenate([row[1] for row in rows]) if class_token else None)

    def _encode_row(self, image: NDArray[np.float32], class_token: bool) -> list[NDArray[np.float32]]:
        """Return the patch tokens and, if requested or computed anyway, the class token."""
        head, *tail = self._requests
        outputs = list(head.infer([np.ascontiguousarray(image)]).values())
        if not tail:
            return outputs
        return [outputs[0], *(tail[0].infer(outputs[1:]).values() if class_token else ())]

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._lock:
            self._requests = []


def choose_device(available: Sequence[str], device: str | None) -> str:
    """Return the device to compile for.

    Args:
        available: Devices that OpenVINO finds.
        device: The requested one. Default: ``cpu``.

    Raises:
        VisionADError: OpenVINO does not find it.
    """
    name = (device or "cpu").upper()
    if name in available or any(other.startswith(f"{name}.") for other in available):
        return name
    listed = ", ".join(other.lower() for other in available) or "none"
    raise VisionADError(
        f"openvino: expected a device that it finds here ({listed}), got {name.lower()}; an Intel GPU or NPU needs Intel's "
        "driver for it, and on Linux a user of the group `render`"
    )


def choose_precision(manifest: ModelManifest, precision: Precision | None) -> Precision:
    """Return the precision to compute in.

    Raises:
        VisionADError: The model's graph is typed in another half precision.
    """
    default: Precision = "fp32" if manifest.precision == "tf32" else manifest.precision
    if precision not in (None, default) and default != "fp32":
        raise VisionADError(
            f"openvino: expected precision {default}, got {precision}; the weights of this model are in {default}: export it with "
            "`visionad export --precision fp32` (its banks stay valid)"
        )
    return precision or default


def check_capability(capabilities: Iterable[str], precision: Precision, device: str) -> None:
    """Check that the device computes in a precision.

    Raises:
        VisionADError: It does not.
    """
    available = _precisions(capabilities)
    if precision in available:
        return
    needs = {
        "bf16": ": it takes AVX512_BF16 or AMX (Intel from Cooper Lake and Sapphire Rapids on, AMD from Zen 4 on)",
        "fp16": ": it takes AVX512_FP16 or AMX-FP16, or an ARM CPU with FP16",
    }
    remedy = f"choose --precision {available[0]}" if available else "choose another --device"
    raise VisionADError(
        f"openvino: expected precision {' or '.join(available) or 'none at all'} on this {device}, got {precision}, which "
        f"it has no instructions for{needs.get(precision, '') if device == 'CPU' else ''}; {remedy}, or use another --backend"
    )


def _precisions(capabilities: Iterable[str]) -> list[str]:
    """Return the precisions among a device's capabilities."""
    listed = set(capabilities)
    return [name for name in _HINTS if name.upper() in listed]


def check_realized(types: Counter[str], hint: str | None, precision: Precision, device: str) -> None:
    """Check that a compiled model computes in the requested precision.

    Args:
        types: Precision -> number of products of the executed graph. Empty if the device does not list it.
        hint: The precision that the compiled model states, if it states one.
        precision: The requested precision.
        device: The device, for the message.

    Raises:
        ModelError: It computes in another precision, or does not report it.
    """
    foreign = set(types) - {precision, "fp32"}
    few = bool(types) and types[precision] * 2 < types.total()
    if foreign or few or (hint is not None and hint != precision) or (not types and hint is None):
        realized = (
            f"products in {_counted(types) or 'unknown types'}, and the compiled model states {hint or 'nothing'}"
        )
        raise ModelError(
            f"realized precision is not {precision}: OpenVINO {_version()} on {device} has {realized}; "
            "use another OpenVINO release or another --backend"
        )


def describe_precision(types: Counter[str], precision: Precision, kept: int) -> str:
    """Describe the precision of a compiled model, with the number of convolutions that were kept in fp32."""
    if not types:
        return f"{precision}, as the compiled model states; the device lists no operations"
    if not kept:
        return f"{_counted(types)} products"
    return f"{_counted(types)} products; told to stay in fp32: the first {kept} convolution{'s' * (kept > 1)}"


def _counted(types: Counter[str]) -> str:
    return ", ".join(f"{name} in {count}" for name, count in types.most_common())


def _compile(
    core: Any, path: Path, manifest: ModelManifest, device: str, config: dict[str, str], precision: Precision
) -> tuple[list[Any], set[str], int]:
    """Read and compile the model.

    Returns:
        The compiled models of :func:`_split`; the names of the graph's products; how many convolutions were kept in fp32.

    Raises:
        ModelError: The file cannot be read or compiled, or is not the manifest's model.
    """
    error: Exception | None = None
    for limit in (FP32_CONVOLUTIONS, 0) if precision != "fp32" else (0,):  # some graphs do not compile with marks
        try:
            model = core.read_model(str(path))
            _check_shapes(model, manifest, path)
            crop = manifest.identity.preprocess.crop
            model.reshape({"images": [1, 3, crop, crop]})
            products = {op.get_friendly_name() for op in model.get_ops() if op.get_type_name() in _PRODUCTS}
            kept = _keep_fp32(core, model, limit)
            return [core.compile_model(part, device, config) for part in _split(model)], products, kept
        except RuntimeError as exc:  # its message has one line per call of OpenVINO's stack
            error = exc
    raise ModelError(
        f"{path} cannot be compiled by OpenVINO {_version()} for {device}: {_last_line(error)}; use another --backend"
    )


def _check_shapes(model: Any, manifest: ModelManifest, path: Path) -> None:
    identity = manifest.identity
    crop = identity.preprocess.crop
    expected = {
        "images": f"[?,3,{crop},{crop}]",
        "patch_tokens": f"[?,{identity.grid**2},{identity.dim}]",
        "class_token": f"[?,{identity.class_token_dim}]",
    }
    ports = (*model.inputs, *model.outputs)
    got = {port.get_any_name(): str(port.get_partial_shape()).replace(" ", "") for port in ports}
    if got != expected:
        raise ModelError(f"{path}: expected inputs and outputs {expected}, got {got}; export the model again")


def _keep_fp32(core: Any, model: Any, limit: int) -> int:
    """Mark the first convolutions of a model, in place, so that they compute in fp32.

    Returns:
        How many were marked.
    """
    kept = 0
    for op in model.get_ordered_ops():
        if kept == limit:
            break
        if (
            op.get_type_name() not in ("Convolution", "GroupConvolution")
            or str(op.get_element_type()) != "<Type: 'float32'>"
        ):
            continue
        marked = _marked_convolution(core, op)
        for target in op.output(0).get_target_inputs():
            target.replace_source_output(marked.output(0))
        marked.set_friendly_name(op.get_friendly_name())
        kept += 1
    return kept


def _marked_convolution(core: Any, op: Any) -> Any:
    """Return a convolution like ``op``, on the same inputs, with the mark for fp32."""
    shapes = [list(op.input(i).get_shape()) for i in range(2)] + [list(op.output(0).get_shape())]
    x, w, y = ("".join(f"<dim>{n}</dim>" for n in shape) for shape in shapes)
    attributes = " ".join(
        f'{name}="{",".join(map(str, value)) if isinstance(value, list) else value}"'
        for name, value in op.get_attributes().items()
    )
    x_shape, w_shape = (",".join(map(str, shape)) for shape in shapes[:2])
    text = _CONVOLUTION_IR.format(
        kind=op.get_type_name(), attributes=attributes, x=x, w=w, y=y, x_shape=x_shape, w_shape=w_shape
    )
    (marked,) = (new for new in core.read_model(text.encode()).get_ops() if new.get_type_name() == op.get_type_name())
    for i in range(2):
        marked.input(i).replace_source_output(op.input(i).get_source_output())
    return marked


def _split(model: Any) -> list[Any]:
    """Split off what only the class token needs, so that it can be skipped.

    Returns:
        A model of ``patch_tokens`` and the tensors that the second one reads, and a model of ``class_token``; or ``model`` alone,
        with both outputs in this order, if no product would be saved.
    """
    ov = load_openvino()
    passes = importlib.import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())  # shapes become constants, which do not cross the split
    manager.run_passes(model)
    patch, cls = (model.output(name).get_node() for name in ("patch_tokens", "class_token"))
    head: set[str] = set()
    pending = [patch]
    while pending:
        op = pending.pop()
        if op.get_name() not in head:
            head.add(op.get_name())
            pending += [i.get_source_output().get_node() for i in op.inputs()]
    rest = [op for op in model.get_ordered_ops() if op.get_name() not in head]
    crossing: dict[tuple[str, int], tuple[Any, list[Any]]] = {}
    for op in rest:
        for port in op.inputs():
            source = port.get_source_output()
            node = source.get_node()
            if node.get_name() in head and node.get_type_name() != "Constant":
                crossing.setdefault((node.get_name(), source.get_index()), (source, []))[1].append(port)
    images = model.get_parameters()
    saves = any(op.get_type_name() in _PRODUCTS for op in rest)
    if not saves or any(source.get_element_type() != ov.Type.f32 for source, _ in crossing.values()):
        return [ov.Model([patch, cls], images, "backbone")]
    sources, parameters = [], []
    for source, targets in crossing.values():
        parameter = ov.op.Parameter(source.get_element_type(), source.get_partial_shape())
        for target in targets:
            target.replace_source_output(parameter.output(0))
        sources.append(ov.op.Result(source))
        parameters.append(parameter)
    return [ov.Model([patch, *sources], images, "patch tokens"), ov.Model([cls], parameters, "class token")]


def _realized_hint(models: Sequence[Any]) -> str | None:
    """Return the precision that compiled models state; ``None`` if they state none."""
    try:
        (hint,) = {str(model.get_property("INFERENCE_PRECISION_HINT").get_type_name()) for model in models}
    except (RuntimeError, ValueError):  # the device has no such property, or the models differ
        return None
    return _NAMES.get(hint, hint)


def _realized_types(models: Sequence[Any], products: set[str]) -> Counter[str]:
    """Count the executed operations that contain a product, by their precision; empty if a device does not list them."""
    types: Counter[str] = Counter()
    for model in models:
        try:
            ops = model.get_runtime_model().get_ordered_ops()
        except RuntimeError:
            return Counter()
        for op in ops:
            facts = op.get_rt_info()
            kind = str(facts["layerType"].astype(str)).lower().replace("_", "")
            if kind in _EXECUTED or not products.isdisjoint(facts["originalLayersNames"].astype(str).split(",")):
                types[str(facts["runtimePrecision"].astype(str)).lower()] += 1
    return Counter({_NAMES.get(name, name): count for name, count in types.items()})


def _version() -> str:
    return importlib.metadata.version("openvino")


def _last_line(exc: Exception | None) -> str:
    """Return the last line of OpenVINO's message, which is the cause. The other lines are places in its source."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(exc).__name__


def _open(
    folder: Path,
    manifest: ModelManifest,
    *,
    threads: int | None,
    precision: Precision | None,
    device: str | None,
    **_: object,
) -> OpenVINOEngine:
    return OpenVINOEngine(folder, manifest, threads, precision, device)


def _probe() -> Probe:
    if importlib.util.find_spec("openvino") is None:
        return Probe(False, f"not installed: {INSTALL}")
    code = (
        "import json\n"
        f"from {__name__} import devices\n"
        "from visionad_runtime.errors import VisionADError\n"
        "try:\n"
        "    result = devices()\n"
        "except VisionADError as exc:\n"
        "    result = str(exc)\n"
        "print(json.dumps(result))\n"
    )
    result = run_isolated(code)
    if not isinstance(result, dict):
        return Probe(False, result or "it crashes when it is loaded: pip install --force-reinstall openvino")
    listed = ", ".join(f"{name.lower()} ({full})" for name, full in result.items())
    return Probe("CPU" in result, f"{_version()}; devices: {listed}")


SPEC = BackendSpec(
    name=NAME,
    device=CPU,
    open=_open,
    probe=_probe,
    priority=90,
    extra=EXTRA,
    packages=("openvino",),
    precisions=("fp32", "bf16", "fp16"),
    takes_device=True,
    tested={"openvino": ("2026.4",)},
    not_run={"openvino": "Intel GPUs and NPUs; its CPU device is tested"},
    needs="`pip install 'visionad[openvino]'`; for an Intel GPU or NPU its driver, and `--device`",
    verified="x86-64 with AVX512_BF16, OpenVINO 2026.4: fp32 and bf16 on the CPU",
)
"""``auto`` prefers ``onnxruntime-cpu``: in fp32 neither is always faster, and nobody's results should change."""
