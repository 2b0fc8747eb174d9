"""Pages of the site that are made from the code: the command line, the manifests' JSON schemas and the table of image files.

A hook of mkdocs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from typer.cli import get_docs_for_click
from visionad_runtime.cli.main import app
from visionad_runtime.formats.manifest import BankManifest, ModelManifest
from visionad_runtime.images.support import ENDINGS, ROWS

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
| GIF, TIFF with LZW or PackBits | the length of the data | changed bits |
| BMP, PPM, uncompressed TIFF | the length of the data | changed bytes |

## Files of a folder

In folders these endings count, in upper or lower case: {endings}. A file that is named directly is read whatever its ending.

## The same image twice

`visionad_runtime.images.pixels.pixel_digest` is equal for files that decode to the same pixels, however they are stored. The file's
digest is not.
"""


PAGES = {"reference/cli.md": command_page, "reference/schemas.md": schema_page, "reference/images.md": image_page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
