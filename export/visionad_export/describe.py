"""The summary of an export as text."""

from __future__ import annotations

from typing import Any


def describe(summary: dict[str, Any]) -> str:
    """Return the summary of :func:`~visionad_export.exporter.export_model` as a few lines of text."""
    layers, grid = summary["layers"], summary["grid"]
    lines = [
        f"model      {summary['model']} ({summary['bytes'] / 1e6:.1f} MB)",
        f"backbone   {summary['backbone']}, layers {layers[0]}-{layers[-1]}, weights {summary['weights']['sha256'][:8]} "
        f"from {summary['weights']['source']}",
        f"tokens     {grid} x {grid} patches of {summary['dim']}, {summary['class_token']} class token of "
        f"{summary['class_token_dim']}",
        f"score      views {', '.join(summary['views'])}; mean of the largest {summary['top_share']:.2%} of the map"
        + (", distances weighted by self-similarity" if summary["rarity"] else ""),
        f"check      ONNX Runtime against PyTorch: largest difference {summary['max_error']:.1e}",
        *_describe_precision(summary),
    ]
    if summary["dropped_area"]:
        resize, patch = summary["resize"], summary["patch"]
        full = resize // patch * patch
        lines.append(
            f"note       the centre crop {summary['crop']} of {resize} leaves the outer {summary['dropped_area']:.1%} of "
            f"the image uninspected; --resize {full} --crop {full} inspects all of it"
        )
    return "\n".join(lines)


def _describe_precision(summary: dict[str, Any]) -> list[str]:
    precision, accuracy, types = summary["precision"], summary["accuracy"], summary["types"]
    if accuracy is None:
        return []
    lines = [f"precision  {precision}"]
    if precision != "tf32":  # the graph of tf32 is fp32; the backend rounds
        lowered, kept = (
            ", ".join(
                f"{of[kind]} {op}" for op, of in sorted(types.items()) if of.get(kind) and op not in _NO_ARITHMETIC
            )
            for kind in (precision, "fp32")
        )
        lines = [
            f"precision  {precision}: {lowered}",
            f"           fp32: {kept}; {sum(types['Cast'].values())} casts between the two",
            f"           ONNX file {summary['onnx_bytes'] / 1e6:.1f} MB, {summary['onnx_bytes_fp32'] / 1e6:.1f} MB in fp32",
        ]
    lines.append(
        f"accuracy   smallest cosine to fp32 {accuracy['min_cosine']:.5f}, largest difference {accuracy['max_abs']:.1e} "
        "(emulated, on images made to be hard)"
    )
    return lines


_NO_ARITHMETIC = frozenset(
    {"Cast", "Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that compute nothing, so their precision does not matter."""
