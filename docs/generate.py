"""Pages of the site that are made from the code: command line, JSON schemas, image files, and the reference of the station.

A hook of mkdocs.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click
from visionad_runtime.cli.main import app
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import BankManifest, ModelManifest
from visionad_runtime.images.support import ENDINGS, ROWS
from visionad_runtime.station.camera import CAMERAS
from visionad_runtime.station.front.cycle import REASONS
from visionad_runtime.station.settings import StationSettings
from visionad_runtime.station.sink import SINKS
from visionad_runtime.station.sinks.modbus_map import (
    CONTROL_BITS,
    MAP_VERSION,
    READ_ORIGIN,
    REGISTERS,
    STATUS_BITS,
    as_csv,
)
from visionad_runtime.station.worker.checks import ALARMS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def command_page() -> str:
    """Every command with its arguments and options, Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="visionad")  # type: ignore[arg-type]  # Typer has a Click of its own
    text = get_docs_for_click(obj=command, ctx=context, name="visionad", title="Command line")
    return text.replace("timm:<model>", "`timm:<model>`")


def schema_page() -> str:
    """JSON schemas of both manifests, Markdown."""
    parts = ["# Schemas\n\nJSON schemas of the manifests. [Formats](formats.md) explains the fields.\n"]
    for title, kind in (("Model manifest", ModelManifest), ("Bank manifest", BankManifest)):
        schema = json.dumps(kind.model_json_schema(), indent=2, ensure_ascii=False)
        parts.append(f"## {title}\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)


def image_page() -> str:
    """What image files are read, by which decoder, and what is refused, Markdown."""
    endings = ", ".join(f"`{ending}`" for group in ENDINGS.values() for ending in group)
    rows = "\n".join(
        [
            "| format | content | decoder | result |\n|---|---|---|---|",
            *(f"| {row.format} | {row.content} | {row.decoder or 'refused'} | {row.result} |" for row in ROWS),
        ]
    )
    return f"""# Image files

An image is read exactly, or an error says what it is and what to save instead. Two files with the same pixel values decode to the
same array, whatever their compression, planes, strips, tiles, byte order or orientation tag.

{rows}

## Rules

* **More than 8 bits.** State how many bits the camera fills: `--bit-depth 12`. The upper 8 of them are used. Values that need more
  bits are an error.
* **Rotation.** EXIF rotation is not applied. The Orientation tag of a TIFF is. OpenCV's `imread` applies both: pass
  `cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION` to get the pixels that the command line sees in a JPEG.
* **Alpha** is dropped. Colors of transparent pixels are seen.
* **Profiles, gamma and text** have no effect. Damage in them is no error.
* **Damage.** What a decoder warns of is an error. Truncated files are errors.
* **Size.** 150 million pixels and 1 GiB a file are the limits.

## Damage that cannot be seen

| format | how damage is found | what is missed |
|---|---|---|
| PNG, TIFF with Deflate | checksum | nothing likely |
| JPEG | libjpeg's warnings; scans that are missing | single bits, and short gaps in the last scans of a progressive file |
| WebP | number of bytes that the decoder needs | damage after which the decoder needs as many bytes as before |
| GIF, TIFF with LZW, PackBits or Zstandard | the length of the data | changed bits |
| BMP, PPM, uncompressed TIFF | the length of the data | changed bytes |

## Files of a folder

In folders these endings count, in upper or lower case: {endings}. A file that is named directly is read whatever its ending.

## The same image twice

`visionad_runtime.images.pixels.pixel_digest` is equal for files that decode to the same pixels, however they are stored. The file's
digest is not.
"""


def station_page() -> str:
    """Keys of the station file, settings of cameras and sinks, alarms, reasons and the Modbus map, Markdown."""
    parts = [
        "# Station\n\nThis page is made from the code. [Stations](../guides/station.md) explains it.\n",
        "## Keys of the station file\n\nPaths are relative to the file. `!env NAME` takes a value from the environment.\n",
        _keys_table(StationSettings),
    ]
    for title, registry in (("Cameras", CAMERAS), ("Sinks", SINKS)):
        parts.append(f"## {title}\n")
        for kind in registry.kinds():
            try:
                leaf = registry.load(kind)
            except VisionADError:  # of a third-party package that does not import
                continue
            parts.append(f"### `kind: {kind}`\n\n{_keys_table(leaf.Settings, skip=('kind',))}")
    alarms = [(f"`{code}`", meaning, remedy) for code, (meaning, remedy) in ALARMS.items()]
    parts.append("## Alarms\n\n" + _table(("code", "meaning", "remedy"), alarms))
    reasons = [(str(number), reason) for number, reason in enumerate(REASONS)]
    parts.append("## Reasons\n\n" + _table(("number", "reason"), reasons))
    registers = [(row.space, row.address, row.words, f"`{row.name}`", row.kind, row.meaning) for row in REGISTERS]
    bits = [("control", bit, f"`{name}`") for bit, name in enumerate(CONTROL_BITS)]
    bits += [("status", bit, f"`{name}`") for bit, name in enumerate(STATUS_BITS)]
    parts.append(
        f"## Modbus map\n\nVersion {MAP_VERSION}, also as [CSV](modbus.csv). The input registers can also be read as holding "
        f"registers from {READ_ORIGIN} on.\n\n"
        + _table(("space", "address", "registers", "name", "kind", "meaning"), registers)
        + "\n"
        + _table(("register", "bit", "name"), bits)
    )
    return "\n".join(parts)


def key_rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of each setting below a model; the meaning is that of its docstring."""
    meanings = _attributes(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = _model_in(field.annotation)
        is_mapping = get_origin(field.annotation) is dict
        default = (
            "required" if field.is_required() else "" if inner or field.default in (None, ()) else _plain(field.default)
        )
        yield key, "" if inner else _type(field.annotation), default, meanings.get(name, "")
        if inner is not None:
            yield from key_rows(inner, f"{key}.NUMBER." if is_mapping else f"{key}.")


def _keys_table(model: type[BaseModel], skip: tuple[str, ...] = ()) -> str:
    rows = [(f"`{key}`", *rest) for key, *rest in key_rows(model) if key not in skip]
    return _table(("key", "type", "default", "meaning"), rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return the texts of ``Attributes:`` in the docstring of a model and its bases, with Markdown's code marks."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
        for match in re.finditer(r"^    (\w+): ((?:.*)(?:\n      .*)*)", section[1] if section else "", re.MULTILINE):
            found[match[1]] = " ".join(match[2].split()).replace("``", "`")
    return found


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the model that a field holds, alone, or as values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)


def _type(annotation: object) -> str:
    origin, inner = get_origin(annotation), [part for part in get_args(annotation) if part not in (type(None), ...)]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[0])} → {_type(inner[1])}"
    if inner:
        return " or ".join(dict.fromkeys(map(_type, inner)))
    names = {str: "text", int: "number", float: "number", bool: "true or false", Any: "settings"}
    return names.get(
        annotation, "path" if annotation is Path else getattr(annotation, "__name__", str(annotation)).lower()
    )  # type: ignore[call-overload]


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(f"`{one}`" for one in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


PAGES = {
    "reference/cli.md": command_page,
    "reference/schemas.md": schema_page,
    "reference/images.md": image_page,
    "reference/station.md": station_page,
}
FILES = {"reference/modbus.csv": as_csv}
"""Files that are committed, because a PLC's programmer takes them from the repository. ``python docs/generate.py`` writes them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


if __name__ == "__main__":
    for path, text in FILES.items():
        (Path(__file__).parent / path).write_text(text(), encoding="utf-8")
