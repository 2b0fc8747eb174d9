"""Replay: recompute recorded verdicts with the bank version that each names, bit for bit; or show what another bank would say.

A record is a line of a journal (``watch --journal``) or of ``predict --json``. Floats in JSON are written so that reading them
gives the same bits, so results are compared for equality. A difference names the first stage that explains it.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..bank.folder import check_identity
from ..bank.store import Bank
from ..engine.base import Engine
from ..errors import BankError, ImageError, VisionADError
from ..formats.files import sha256_bytes
from ..images import decode
from ..images.pixels import RGB8
from ..inspector import Inspector
from ..inspector.inspection import Inspection
from ..pipeline.base import Pipeline
from ..scoring.preset import scoring_for
from ..scoring.spec import ScoringSpec
from .kept_images import FileIndex, pixels_of
from .kept_pipeline import KeptPipeline
from .kept_tokens import KeptTokensEngine

Facts = Mapping[str, Any]
Stage = Literal[
    "line", "image", "model", "bank", "precision", "backend", "routing", "score", "threshold", "verdict", "regions"
]

FIELDS: dict[Stage, tuple[str, ...]] = {
    "precision": ("precision",),
    "routing": ("class", "class_source", "class_margin", "class_mismatch"),
    "score": ("score",),
    "threshold": ("threshold", "promise", "p_value"),
    "verdict": ("verdict",),
    "regions": ("regions",),
}
"""Stage → fields of a record that it decides, in the order of computation."""
FILES = "files"
"""Folder of the kept tokens' folder: shapes and digests of the images of files."""
READERS = 2
"""Threads that read the next images."""
MAX_OPEN = 3
"""Bank versions in memory at a time. Records of a journal come version by version."""


class Difference(NamedTuple):
    """Why a record is not the same.

    Attributes:
        stage: first stage that explains it.
        expected: what the record says.
        got: what was computed, or why nothing was.
    """

    stage: Stage
    expected: Any
    got: Any


class Replayed(NamedTuple):
    """One line of the records.

    Attributes:
        line: its number, from 1.
        image: its image, as recorded; ``None`` if the line cannot be read.
        difference: ``None`` if all is the same.
        skipped: why it was not replayed: ``unreadable`` for a line that is no record, ``error`` for an image that had no result.
    """

    line: int
    image: str | None
    difference: Difference | None
    skipped: Literal["unreadable", "error"] | None = None


@dataclass(frozen=True)
class Target:
    """What to compare with, instead of the bank version that each record names.

    Attributes:
        bank: folder of the bank.
        version: its version; ``None`` for the newest.
    """

    bank: Path
    version: int | None = None


class Replay:
    """Replays records with one opened model.

    Attributes:
        tokens: engine that keeps tokens, if there is a folder for them.
    """

    def __init__(
        self,
        inspector: Inspector,
        bank: Path,
        *,
        target: Target | None = None,
        images: Path | None = None,
        tokens: Path | None = None,
        bit_depth: int | None = None,
        preset: str | None = None,
        views: str | None = None,
    ) -> None:
        """Take a model and a bank.

        Args:
            inspector: the opened model. Its own bank is not used.
            bank: folder of the bank that the records name versions of.
            target: other bank, or version, whose verdicts are compared with the recorded ones. ``None`` compares every field with
                the version that made it.
            images: folder to look for images in, by name, instead of the recorded path.
            tokens: folder that keeps the images' tokens.
            bit_depth: bits that the camera filled in 16-bit files.
            preset: preset that the records were made with; ``None`` for that of the class's calibration, or the model's.
            views: views that the records were made with.

        Raises:
            BankError: The target cannot be opened, or was made with another model.
            VisionADError: The folder of tokens cannot be made.
        """
        self._inspector, self._bank, self._target, self._images = inspector, bank, target, images
        self._bit_depth, self._preset, self._views = bit_depth, preset, views
        identity = inspector.manifest.identity
        self.tokens = None if tokens is None else KeptTokensEngine(inspector.engine, tokens, inspector.digest, identity)
        self._files = None if tokens is None else FileIndex(tokens / FILES, bit_depth)
        self._banks: OrderedDict[tuple[Path, int | None], Bank] = OrderedDict()
        self._open: OrderedDict[tuple[Bank, ScoringSpec], Inspection] = OrderedDict()
        if target is not None:
            check_identity(target.bank, self._opened(target.bank, target.version).manifest.identity, identity)

    @property
    def engine(self) -> Engine:
        """Engine that encodes."""
        return self._inspector.engine if self.tokens is None else self.tokens

    def close(self) -> None:
        """Release what was opened. The inspector stays open."""
        while self._open:
            self._open.popitem()[1].close()

    def run(self, records: Path) -> Iterator[Replayed]:
        """Replay all lines of a file, in order.

        Args:
            records: the file.

        Yields:
            One item per line, empty lines included.

        Raises:
            VisionADError: The file cannot be read.
        """
        lines, ahead = read_records(records), deque[tuple[int, Facts | None, Future[RGB8 | Difference] | None]]()
        pool = ThreadPoolExecutor(READERS, "visionad-replay")
        try:
            while True:
                while len(ahead) <= READERS and (line := next(lines, None)) is not None:
                    replayable = line[1] is not None and "error" not in line[1]
                    ahead.append((*line, pool.submit(self._image, line[1] or {}) if replayable else None))
                if not ahead:
                    return
                number, facts, image = ahead.popleft()
                if facts is None:
                    yield Replayed(number, None, None, "unreadable")
                elif image is None:
                    yield Replayed(number, str(facts["image"]), None, "error")
                else:
                    yield Replayed(number, str(facts["image"]), self._difference(facts, image.result()))
        finally:
            pool.shutdown(cancel_futures=True)

    def _difference(self, facts: Facts, rgb: RGB8 | Difference) -> Difference | None:
        if isinstance(rgb, Difference):
            return rgb
        if self._target is None and facts.get("model", self._inspector.digest) != self._inspector.digest:
            return Difference("model", facts["model"], self._inspector.digest)
        try:
            if self._target is None:
                bank = self._opened(self._bank, int(facts["bank_version"]))
            else:
                bank = self._opened(self._target.bank, self._target.version)
            made_with, model = bank.manifest.identity, self._inspector.manifest.identity
            if made_with != model:
                return Difference("model", made_with.describe(), model.describe())
            got = self._inspect(bank, rgb, facts)
        except BankError as exc:
            version = facts["bank_version"] if self._target is None else self._target.version or "the newest"
            return Difference("bank", f"version {version}", str(exc))
        except ImageError as exc:  # it has another size than the ROIs of the class
            return Difference("image", str(facts["image"]), str(exc))
        if self._target is not None:
            return _flip(facts, got)
        return compare(facts, got)

    def _image(self, facts: Facts) -> RGB8 | Difference:
        """Return the pixels of a record's image, or why there are none."""
        path = self._find(facts)
        if path is None:
            where = facts["image"] if self._images is None else f"{facts.get('name', facts['image'])} in {self._images}"
            return Difference("image", str(where), "missing")
        try:
            data = decode.read_bytes(path)
            digest = facts.get("sha256")
            if digest is not None and (actual := sha256_bytes(data)) != digest:
                return Difference("image", f"sha256 {digest}", f"changed: sha256 {actual}")
            size = facts.get("bytes")
            if size is not None and digest is None and len(data) != size:
                return Difference("image", f"{size} bytes", f"changed: {len(data)} bytes")

            def decoded() -> RGB8:
                return decode.decode(data, path, self._bit_depth)

            return decoded() if self._files is None else self._files.image(data, decoded)
        except ImageError as exc:
            return Difference("image", str(path), str(exc))

    def _find(self, facts: Facts) -> Path | None:
        recorded = Path(facts["image"])
        if self._images is None:
            return recorded if recorded.exists() else None
        names = [facts["name"]] if "name" in facts else []
        names += [recorded.name] if recorded.is_absolute() else [recorded, recorded.name]
        return next((self._images / name for name in names if (self._images / name).exists()), None)

    def _opened(self, folder: Path, version: int | None) -> Bank:
        """Return a bank version. Its tokens are read, and checked, when they are needed."""
        key = folder, version
        if key not in self._banks:
            self._banks[key] = Bank.open(folder, version=version, lazy=True)
            if len(self._banks) > MAX_OPEN:
                _, old = self._banks.popitem(last=False)
                for pair in [pair for pair in self._open if pair[0] is old]:
                    self._open.pop(pair).close()
        self._banks.move_to_end(key)
        return self._banks[key]

    def _inspect(self, bank: Bank, rgb: RGB8, facts: Facts) -> Facts:
        given = facts.get("class") if facts.get("class_source") == "given" else None
        key = bank, self._scoring(bank, facts)
        if key not in self._open:
            self._open[key] = self._inspector.with_bank(*key, engine=self.tokens, pipeline=self._pipeline(key[1]))
        regions = facts.get("regions") or ()
        evidence = any(region.get("evidence") is not None for region in regions)
        image = pixels_of(rgb) if bank.snapshot.has_rois else rgb  # tiles are cut from the pixels
        ((result, _),) = self._open[key].trace_batch([image], given, trace=False, evidence=evidence)
        recomputed: Facts = json.loads(json.dumps(result.to_dict(str(facts["image"]))))
        return recomputed

    def _pipeline(self, scoring: ScoringSpec) -> Pipeline | None:
        if self.tokens is None:
            return None
        return KeptPipeline(self.tokens, self._inspector.manifest.identity, scoring, threads=self._inspector.threads)

    def _scoring(self, bank: Bank, facts: Facts) -> ScoringSpec:
        """Return how a record was scored: as the options say, else as the class was calibrated, else as the model was exported."""
        held = bank.classes.get(facts.get("class") or "")
        if self._preset is None and self._views is None and held is not None and facts.get("threshold") is not None:
            record = held.entry.calibration
            if record is not None:
                return ScoringSpec.of(record)
        return scoring_for(self._inspector.manifest, bank.manifest.views, self._preset, self._views)


def read_records(path: Path) -> Iterator[tuple[int, Facts | None]]:
    """Read the lines of a file.

    Args:
        path: the file.

    Yields:
        Number of the line, and its fields; ``None`` if it is no record.

    Raises:
        VisionADError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, _parsed(line)
    except OSError as exc:
        raise VisionADError(f"{path} cannot be read: {exc.strerror}; give a journal or the lines of --json") from None


def compare(expected: Facts, got: Facts) -> Difference | None:
    """Compare a record with what was recomputed, field by field. Fields that the record lacks are not compared.

    Timings and dates do not count. Nor does ``void`` of a promise: it depends on the parts before. Another digest of the bank
    explains a difference, unless it is one of the precision or the threshold. Another backend explains what is left; alone, it is
    no difference.

    Args:
        expected: the record.
        got: the object of ``predict --json``.
    """
    found: Difference | None = None
    for stage, names in FIELDS.items():
        for name in names:
            if name in expected and _comparable(name, expected[name]) != _comparable(name, got[name], expected[name]):
                found = Difference(stage, {name: expected[name]}, {name: got[name]})
                break
        if found is not None:
            break
    if found is not None and found.stage in ("precision", "threshold"):
        return found  # these explain themselves
    if expected.get("bank", got["bank"]) != got["bank"]:
        return Difference("bank", expected["bank"], got["bank"])
    if found is not None and expected.get("backend", got["backend"]) != got["backend"]:
        return Difference("backend", expected["backend"], got["backend"])
    return found


def _flip(expected: Facts, got: Facts) -> Difference | None:
    """Return the flip of a verdict, with score and threshold on both sides."""
    if expected.get("verdict") == got["verdict"]:
        return None
    sides = ({name: facts.get(name) for name in ("verdict", "score", "threshold")} for facts in (expected, got))
    return Difference("verdict", *sides)


def _comparable(name: str, value: Any, recorded: Any = None) -> Any:
    """Return a value without what is not compared: fields that the record does not have, and ``void``."""
    if name == "promise" and isinstance(value, dict):
        return {key: part for key, part in value.items() if key != "void"}
    if name != "regions" or not isinstance(recorded, list) or len(recorded) != len(value):
        return value
    return [
        {key: part for key, part in region.items() if key in old} if isinstance(old, dict) else region
        for region, old in zip(value, recorded, strict=True)
    ]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _parsed(line: bytes) -> Facts | None:
    """Return the fields of a line, or ``None`` if it is no record: one has an image, and an error or a verdict."""
    try:
        facts = json.loads(line, parse_constant=_refuse)  # NaN is no JSON, and no score
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("image"), str):
        return None
    if "error" in facts:
        return facts
    regions = facts.get("regions", [])
    whole = (
        isinstance(facts.get("bank_version"), int)
        and isinstance(facts.get("verdict"), str)
        and isinstance(facts.get("score"), float | int)
        and isinstance(facts.get("class"), str | None)
        and isinstance(facts.get("name", ""), str)
        and isinstance(regions, list)
        and all(isinstance(region, dict) for region in regions)
    )
    return facts if whole else None
