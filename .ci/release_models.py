"""Export the usual backbones and publish them as signed model folders with an index: `.ci/release_models.py OUT --key FILE`.

OUT becomes a store that a plain web server can serve. `visionad model pull NAME --index URL/index.json --pub FILE` then starts
the lean install. Weights come from `--weights DIR` (`BACKBONE/model.safetensors`), or from timm's hub.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from visionad_export.exporter import export_model
from visionad_runtime.fleet.store.minisign import SecretKey, read_secret, sign
from visionad_runtime.fleet.store.push import push_model
from visionad_runtime.fleet.store.revisions import parse_target

BACKBONES = (
    "efficientnet_lite0",
    "deit_tiny_patch16_224",
    "dinov2_vits14_reg",
    "dinov2_vitb14_reg",
    "dinov2_vitl14_reg",
)
INDEX = "index.json"


def read_key(path: Path | None, variable: str | None) -> SecretKey:
    """Read the secret key from a file or a variable."""
    if path is not None:
        return read_secret(path)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "key"
        place.touch(0o600)
        place.write_text(os.environ.get(variable or "", ""))
        return read_secret(place)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--key", type=Path, help="secret key of `visionad keygen`")
    given.add_argument("--key-variable", metavar="NAME", help="environment variable with the content of that file")
    parser.add_argument("--weights", type=Path, help="folder with BACKBONE/model.safetensors")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    args = parser.parse_args()
    key = read_key(args.key, args.key_variable)
    models: dict[str, str] = {}
    for backbone in args.backbones:
        with tempfile.TemporaryDirectory() as folder:
            weights = None if args.weights is None else args.weights / backbone / "model.safetensors"
            export_model(backbone, Path(folder) / "model", weights=weights if weights and weights.is_file() else None)
            pushed = push_model(Path(folder) / "model", parse_target(f"{args.out}/{backbone}"), key)
        models[backbone] = f"{backbone}@{pushed.revision}"
        print(f"{backbone}@{pushed.revision}: {pushed.bytes / 1e6:.0f} MB")
    data = (json.dumps({"models": models}, indent=1) + "\n").encode()
    (args.out / f"{INDEX}.minisig").write_bytes(sign(data, key, f"index of {len(models)} models"))
    (args.out / INDEX).write_bytes(data)


if __name__ == "__main__":
    main()
