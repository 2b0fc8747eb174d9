"""OpenVINO: on the CPU (the default), an Intel GPU or an NPU, in a precision that the user names.

Importing this module does not import OpenVINO.

OpenVINO's own default is the fastest precision that the device has: bf16 on a CPU with AVX512_BF16 or AMX. Here it is the
model's. What was built is read back from the compiled model: its property, and the type of each product of the executed graph.

In half precision the convolutions that see the image first stay in fp32: the patch embedding of a ViT, the stem and the first
block of a CNN. Rounding their factors moves tokens more than rounding all others does, and they are little work. OpenVINO 2026.4
can be told to keep a convolution in fp32; for a matrix product it ignores the same mark.
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
"""How many convolutions stay in fp32 where the rest is in half precision, counted from the image. A ViT has one; five are those
of EfficientNet-Lite0 before the image is a quarter of its size. In bf16, the worst patch token of six images of bottles has the
cosine 0.9898 to fp32 without them and 0.9995 with them (EfficientNet-Lite0), 0.981 and 0.994 (DeiT-Tiny), in the same time."""

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NAMES = {hint: name for name, hint in _HINTS.items()}
_PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Matrix products and convolutions, as a model's operations are called."""
_EXECUTED = frozenset({"convolution", "fullyconnected", "matmul", "gemm", "scaleddotproductattention"})
"""The same as executed. Other executed operations are fusions, which name what they were made of, but for a product whose bias
was fused into it: that has the name of the bias."""

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
"""One convolution in OpenVINO's own format: the mark is an attribute that OpenVINO reads from files, and Python cannot set."""


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry: its import would send an event to Intel.

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
    """Hide the package ``openvino_telemetry`` from an import of OpenVINO, which takes a stub of its own instead."""
    name = "openvino_telemetry"
    modules: dict[str, Any] = sys.modules
    if name in modules:  # somebody else's choice, and too late
        yield
        return
    modules[name] = None  # to the import system: there is no such module
    try:
        yield
    finally:
        del modules[name]


def devices() -> dict[str, str]:
    """Return the devices that OpenVINO finds here, with their full names and precisions.

    Raises:
        VisionADError: OpenVINO is not installed, or does not load.
    """
    core = load_openvino().Core()
    found = {}
    for name in core.available_devices:
        able = ", ".join(_able(core.get_property(name, "OPTIMIZATION_CAPABILITIES")))
        found[name] = f"{str(core.get_property(name, 'FULL_DEVICE_NAME')).strip()}: {able}"
    return found


class OpenVINOEngine:
    """Computes each row of a call alone, in one inference request: one call at a time."""

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
            VisionADError: OpenVINO is missing, or the device, or the precision on this device.
            ModelError: The model cannot be compiled, or was compiled in another precision.
        """
        core = load_openvino().Core()
        where = choose_device(core.available_devices, device)
        self.precision = choose_precision(manifest, precision)
        check_capability(core.get_property(where, "OPTIMIZATION_CAPABILITIES"), self.precision, where)
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[self.precision]}
        if where == "CPU":
            # Not pinned: two inspectors on one machine would be pinned to the same cores.
            config |= {"NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
            config |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        models, products, kept = _compile(core, folder / ONNX_FILE, manifest, where, config, self.precision)
        hint, types = _realised_hint(models), _realised_types(models, products)
        check_realised(types, hint, self.precision, where)
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
        """Return the patch tokens and, if asked for or computed anyway, the class token."""
        head, *tail = self._requests
        found = list(head.infer([np.ascontiguousarray(image)]).values())
        if not tail:
            return found
        return [found[0], *(tail[0].infer(found[1:]).values() if class_token else ())]

    def close(self) -> None:
        """See :class:`~visionad_runtime.engine.base.Engine`."""
        with self._lock:
            self._requests = []


def choose_device(available: Sequence[str], device: str | None) -> str:
    """Return the device to compile for.

    Raises:
        VisionADError: OpenVINO does not find it here.
    """
    name = (device or "cpu").upper()
    if name in available or any(one.startswith(f"{name}.") for one in available):
        return name
    found = ", ".join(one.lower() for one in available) or "none"
    raise VisionADError(
        f"openvino: expected a device that it finds here ({found}), got {name.lower()}; an Intel GPU or NPU needs Intel's "
        "driver for it, and on Linux a user of the group `render`"
    )


def choose_precision(manifest: ModelManifest, precision: Precision | None) -> Precision:
    """Return the precision to compute in.

    Raises:
        VisionADError: The model's graph is typed in another half precision.
    """
    own: Precision = "fp32" if manifest.precision == "tf32" else manifest.precision
    if precision not in (None, own) and own != "fp32":
        raise VisionADError(
            f"openvino: expected precision {own}, got {precision}; the weights of this model are in {own}: export it with "
            "`visionad export --precision fp32` (its banks stay valid)"
        )
    return precision or own


def check_capability(capabilities: Iterable[str], precision: Precision, device: str) -> None:
    """Check that the device computes in a precision.

    Raises:
        VisionADError: It does not.
    """
    able = _able(capabilities)
    if precision in able:
        return
    needs = {
        "bf16": ": it takes AVX512_BF16 or AMX (Intel from Cooper Lake and Sapphire Rapids on, AMD from Zen 4 on)",
        "fp16": ": it takes AVX512_FP16 or AMX-FP16, or an ARM CPU with FP16",
    }
    remedy = f"choose --precision {able[0]}" if able else "choose another --device"
    raise VisionADError(
        f"openvino: expected precision {' or '.join(able) or 'none at all'} on this {device}, got {precision}, which it has no "
        f"instructions for{needs.get(precision, '') if device == 'CPU' else ''}; {remedy}, or use another --backend"
    )


def _able(capabilities: Iterable[str]) -> list[str]:
    listed = set(capabilities)
    return [name for name in _HINTS if name.upper() in listed]


def check_realised(types: Counter[str], hint: str | None, precision: Precision, device: str) -> None:
    """Check that a compiled model computes in the precision that was asked for.

    Args:
        types: Precision -> number of products in it, of the executed graph. Empty where the device does not list it.
        hint: The precision that the compiled model states, if it states one.
        precision: The precision that was asked for.
        device: The device, for the message.

    Raises:
        ModelError: It computes in another one, or does not tell.
    """
    foreign = set(types) - {precision, "fp32"}
    few = bool(types) and types[precision] * 2 < types.total()
    if foreign or few or (hint is not None and hint != precision) or (not types and hint is None):
        found = f"products in {_counted(types) or 'unknown types'}, and the compiled model states {hint or 'nothing'}"
        raise ModelError(
            f"realised precision is not {precision}: OpenVINO {_version()} on {device} has {found}; "
            "use another OpenVINO release or another --backend"
        )


def describe_precision(types: Counter[str], precision: Precision, kept: int) -> str:
    """Say in words in which precision a compiled model computes."""
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
        ModelError: It cannot be read or compiled, or is another model than the manifest says.
    """
    fault: Exception | None = None
    for limit in (FP32_CONVOLUTIONS, 0) if precision != "fp32" else (0,):  # some graphs fail to compile with them
        try:
            model = core.read_model(str(path))
            _check_shapes(model, manifest, path)
            crop = manifest.identity.preprocess.crop
            model.reshape({"images": [1, 3, crop, crop]})
            products = {op.get_friendly_name() for op in model.get_ops() if op.get_type_name() in _PRODUCTS}
            kept = _keep_fp32(core, model, limit)
            return [core.compile_model(part, device, config) for part in _split(model)], products, kept
        except RuntimeError as exc:  # OpenVINO's, with a line for each place that it passed
            fault = exc
    raise ModelError(
        f"{path} cannot be compiled by OpenVINO {_version()} for {device}: {_last_line(fault)}; use another --backend"
    )


def _check_shapes(model: Any, manifest: ModelManifest, path: Path) -> None:
    identity = manifest.identity
    crop = identity.preprocess.crop
    expected = {
        "images": f"[?,3,{crop},{crop}]",
        "patch_tokens": f"[?,{identity.grid**2},{identity.dim}]",
        "class_token": f"[?,{identity.class_token_dim}]",
    }
    got = {one.get_any_name(): str(one.get_partial_shape()).replace(" ", "") for one in (*model.inputs, *model.outputs)}
    if got != expected:
        raise ModelError(f"{path}: expected inputs and outputs {expected}, got {got}; export the model again")


def _keep_fp32(core: Any, model: Any, limit: int) -> int:
    """Mark the first convolutions of a model, in place, so that they are computed in fp32.

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
    """Return a convolution like ``op``, on the same inputs, that is marked to be computed in fp32."""
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
    (marked,) = (one for one in core.read_model(text.encode()).get_ops() if one.get_type_name() == op.get_type_name())
    for i in range(2):
        marked.input(i).replace_source_output(op.input(i).get_source_output())
    return marked


def _split(model: Any) -> list[Any]:
    """Cut what only the class token needs off a model, so that it can be left out.

    Returns:
        A model of ``patch_tokens`` and the tensors that the second one reads, and a model of ``class_token``; or ``model`` alone,
        with both outputs in this order, if no product would be saved.
    """
    ov = load_openvino()
    passes = importlib.import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())  # shapes are constants now, and are not passed on
    manager.run_passes(model)
    patch, cls = (model.output(name).get_node() for name in ("patch_tokens", "class_token"))
    head: set[str] = set()
    waiting = [patch]
    while waiting:
        op = waiting.pop()
        if op.get_name() not in head:
            head.add(op.get_name())
            waiting += [i.get_source_output().get_node() for i in op.inputs()]
    rest = [op for op in model.get_ordered_ops() if op.get_name() not in head]
    crossing: dict[tuple[str, int], tuple[Any, list[Any]]] = {}
    for op in rest:
        for one in op.inputs():
            source = one.get_source_output()
            node = source.get_node()
            if node.get_name() in head and node.get_type_name() != "Constant":
                crossing.setdefault((node.get_name(), source.get_index()), (source, []))[1].append(one)
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


def _realised_hint(models: Sequence[Any]) -> str | None:
    """Return the precision that compiled models state; ``None`` if they state none."""
    try:
        (hint,) = {str(model.get_property("INFERENCE_PRECISION_HINT").get_type_name()) for model in models}
    except (RuntimeError, ValueError):  # not a property of this device; or not one precision
        return None
    return _NAMES.get(hint, hint)


def _realised_types(models: Sequence[Any], products: set[str]) -> Counter[str]:
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
    """Return the last line of OpenVINO's message, which is the cause; the others are places in its source."""
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
        "    found = devices()\n"
        "except VisionADError as exc:\n"
        "    found = str(exc)\n"
        "print(json.dumps(found))\n"
    )
    found = run_isolated(code)
    if not isinstance(found, dict):
        return Probe(False, found or "it crashes when it is loaded: pip install --force-reinstall openvino")
    listed = ", ".join(f"{name.lower()} ({full})" for name, full in found.items())
    return Probe("CPU" in found, f"{_version()}; devices: {listed}")


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
"""Behind ``onnxruntime-cpu``: in fp32 neither is always faster, and nobody's results should change."""
