"""Pages of the site that are made from the code: the command line and the manifests' JSON schemas. A hook of mkdocs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from typer.cli import get_docs_for_click
from visionad_runtime.cli.main import app
from visionad_runtime.formats.manifest import BankManifest, ModelManifest

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


PAGES = {"reference/cli.md": command_page, "reference/schemas.md": schema_page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
