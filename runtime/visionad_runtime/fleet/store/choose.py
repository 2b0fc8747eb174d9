"""Which revision a pull takes: the one that is named, or the newest unless it is older than one that was seen."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import VisionADError
from .minisign import PublicKey
from .origin import Seen
from .revisions import Kind, NamedRevisions, Signed


def choose(names: NamedRevisions, seen: Seen | None, keys: Sequence[PublicKey], kind: Kind) -> Signed:
    """Return the revision to pull, its signature checked.

    Args:
        names: revisions of the name.
        seen: what the folder knows of them; ``None`` for nothing.
        keys: pinned keys.
        kind: that is wanted.

    Raises:
        VisionADError: There is none, it is of the other kind, or the newest is older than one that was seen.
    """
    target = names.target
    if target.revision is not None:
        signed = names.read(target.revision, keys)
    else:
        number = names.newest()
        if not number:
            raise VisionADError(f"{target.url}: nothing was pushed to this name")
        if seen is not None and number < seen.highest:
            raise VisionADError(
                f"{target.url} offers revision {number}, and revision {seen.highest} was seen before: an old {kind} may be "
                f"replayed; nothing was changed; `{target.url}@{number}` takes it nevertheless"
            )
        signed = names.read(number, keys)
        if seen is not None and number == seen.revision and signed.sha256 != seen.envelope:
            raise VisionADError(
                f"{target.url}: revision {number} is another one than was seen before; nothing was changed"
            )
        if seen is not None and number == seen.revision + 1 and signed.revision.previous != seen.envelope:
            raise VisionADError(
                f"{target.url}: revision {number} does not follow the one that was seen: history was rewritten; nothing was changed"
            )
    if signed.revision.kind != kind:
        raise VisionADError(f"{target.url} holds a {signed.revision.kind}: use `visionad {signed.revision.kind} pull`")
    return signed
