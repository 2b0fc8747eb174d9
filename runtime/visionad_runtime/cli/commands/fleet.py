"""``visionad keygen``, ``bank push|pull|log|prune`` and ``model push|pull|log``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import VisionADError
from ..console import complain, say
from ..options import BankArg, JsonFlag, ModelArg

TargetArg = Annotated[
    str, typer.Argument(metavar="URL/NAME", help="store and name: a folder, s3://, http:// (pull only)")
]
RevisionArg = Annotated[
    str, typer.Argument(metavar="URL/NAME[@REV]", help="store, name and revision [default: the newest]")
]
KeyOption = Annotated[Path, typer.Option("--key", metavar="FILE", help="secret key of `visionad keygen`")]
PubOption = Annotated[
    list[Path] | None,
    typer.Option("--pub", metavar="FILE", help="public key that is trusted; may be repeated, to change keys"),
]


def keygen(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="folder for visionad.key and visionad.pub")
    ] = Path(),
) -> None:
    """Make a key pair: visionad.key signs what is pushed, visionad.pub is what stations pin."""
    from ...fleet.store.minisign import generate

    out.mkdir(parents=True, exist_ok=True)
    key = generate(out / "visionad.key", out / "visionad.pub")
    say(
        f"{out / 'visionad.key'}: keep it secret; {out / 'visionad.pub'}: give it to every station (key {key.public.name})"
    )


def bank_push(bank: BankArg, target: TargetArg, key: KeyOption, as_json: JsonFlag = False) -> None:
    """Publish a bank, signed. Only files that the store lacks are sent."""
    from ...fleet.store.minisign import read_secret
    from ...fleet.store.push import push_bank
    from ...fleet.store.revisions import parse_target

    where = parse_target(target, revision=False)
    _print_push(where.url, push_bank(bank, where, read_secret(key)), as_json)


def model_push(model: ModelArg, target: TargetArg, key: KeyOption, as_json: JsonFlag = False) -> None:
    """Publish a model folder, signed."""
    from ...fleet.store.minisign import read_secret
    from ...fleet.store.push import push_model
    from ...fleet.store.revisions import parse_target

    where = parse_target(target, revision=False)
    _print_push(where.url, push_model(model, where, read_secret(key)), as_json)


def _print_push(url: str, pushed: Any, as_json: bool) -> None:
    if as_json:
        say(json.dumps({"name": url, **pushed._asdict()}))
    elif pushed.is_new:
        say(f"pushed {url}@{pushed.revision} ({pushed.bytes / 1e6:.1f} MB sent)")
    else:
        sent = f" ({pushed.bytes / 1e6:.1f} MB that the store had lost sent)" if pushed.bytes else ""
        say(f"nothing to push: {url}@{pushed.revision} is the same{sent}")


def bank_pull(
    target: RevisionArg,
    bank: BankArg,
    pub: PubOption = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="GOLDEN_DIR", help="known parts in good/ and bad/ that must get their verdicts"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="MODEL", help="model that the bank must fit [default: the one beside BANK]"),
    ] = None,
    take: Annotated[
        str | None, typer.Option("--take", metavar="local|remote", help="side that decides what cannot be merged")
    ] = None,
    discard_local: Annotated[bool, typer.Option("--discard-local", help="drop changes that were never pushed")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring a bank to a revision, merged with what was enrolled here. Whatever fails, the version in force stays."""
    from ...fleet.store.golden import golden_parts
    from ...fleet.store.pull import PullOptions, pull_bank
    from ...fleet.store.revisions import parse_target, read_keys

    if take not in (None, "local", "remote"):
        raise VisionADError(f"--take {take}: expected local or remote")
    if check is not None:
        golden_parts(check)  # also where nothing is new
    options = PullOptions(read_keys(pub or ()), check, model, take, discard_local)  # type: ignore[arg-type]
    where = parse_target(target)
    pulled = pull_bank(where, bank, options)
    for note in pulled.notes:
        complain(note)
    if as_json:
        facts = {k: getattr(pulled, k) for k in ("revision", "digest", "version", "is_new", "bytes", "notes")}
        say(json.dumps({"name": where.url, **facts}, ensure_ascii=False))
    elif pulled.is_new:
        say(
            f"pulled {where.url}@{pulled.revision} ({pulled.bytes / 1e6:.1f} MB): bank version {pulled.version}, content "
            f"{pulled.digest[:12]}"
        )
    else:
        say(f"nothing new: {where.url}@{pulled.revision}, bank version {pulled.version}, content {pulled.digest[:12]}")


def model_pull(
    target: Annotated[
        str, typer.Argument(metavar="URL/NAME[@REV]|NAME", help="store and name, or a name in the index of models")
    ],
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="model folder [default: the name]")] = None,
    pub: PubOption = None,
    index: Annotated[
        str | None, typer.Option("--index", metavar="URL", help="index of models [default: $VISIONAD_INDEX]")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace another model in the folder")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Download a model folder, checked against its signature. The lean install alone can start with it."""
    from ...fleet.store.models import INDEX, from_index, pull_model
    from ...fleet.store.revisions import parse_target, read_keys

    keys = read_keys(pub or ())
    if "/" in target:
        where = parse_target(target)
    else:
        index = index or os.environ.get(INDEX)
        if not index:
            raise VisionADError(f"{target}: expected URL/NAME, or --index URL with the index that lists this model")
        where = from_index(target, index, keys)
    folder = model or Path(target if "/" not in target else where.name)
    pulled = pull_model(where, folder, keys, replace=replace, step=lambda: None)
    if as_json:
        say(json.dumps({"name": where.url, "model": str(folder), **pulled._asdict()}))
    else:
        what = "pulled" if pulled.is_new else "nothing new:"
        say(f"{what} {where.url}@{pulled.revision} into {folder}, content {pulled.digest[:12]}")


def store_log(target: TargetArg, pub: PubOption = None, as_json: JsonFlag = False) -> None:
    """List the revisions of a name: who pushed what, and when. Each must follow the one before it."""
    from ...fleet.store.revisions import NamedRevisions, parse_target, read_keys

    where = parse_target(target, revision=False)
    keys = read_keys(pub) if pub else None
    count = 0
    for signed in NamedRevisions(where).log(keys):
        one = signed.revision
        count += 1
        size = sum(blob.size for blob in one.files.values())
        if as_json:
            facts = one.model_dump(
                mode="json", include={"revision", "kind", "digest", "change", "who", "created", "previous"}
            )
            say(json.dumps({**facts, "bytes": size}, ensure_ascii=False))
        else:
            say(f"{one.revision:>6}  {one.created}  {one.digest[:12]}  {size / 1e6:>8.1f} MB  {one.who}  {one.change}")
    if not count:
        raise VisionADError(f"{where.url}: nothing was pushed to this name")


def bank_prune(
    url: Annotated[str, typer.Argument(metavar="URL", help="store, without a name")],
    keep: Annotated[int, typer.Option("--keep", min=1, metavar="N", help="revisions of each name to keep")] = 50,
) -> None:
    """Delete old revisions of a store, and files that none needs. What is younger than a day stays."""
    from ...fleet.store.prune import prune

    pruned = prune(url.rstrip("/"), keep)
    say(f"deleted {pruned.revisions} revisions and {pruned.files} files")


def model_info(model: ModelArg, as_json: JsonFlag = False) -> None:
    """Check a model folder, and say what it is."""
    from ...formats.model_folder import read_model

    manifest = read_model(model)
    facts = {
        "model": manifest.content_digest(),
        "identity": manifest.identity.describe(),
        "precision": manifest.precision,
    }
    say(json.dumps(facts) if as_json else f"{facts['identity']}, {facts['precision']}, content {facts['model'][:12]}")
