"""Teaching process of a station: it holds the drafts, and encodes and scores for them. It talks to the front over one pipe.

It is a process of its own, at low priority, with a model of its own: the line's parts do not wait for what a person teaches.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bank.adopt import ClassChangedError, adopt_class, entry_digest
from ...bank.supports import png_file, support_record
from ...errors import BankError, ImageError, VisionADError
from ...formats.manifest import BankManifest, read_manifest
from ...formats.roi import RoiSpec, spec_from_json
from ...images.pixels import to_rgb
from ...inspector import Inspector
from ...teaching.draft import Draft
from ...teaching.draft_state import (
    BANK,
    STATE,
    DraftChangedError,
    NotReadyError,
    begin_draft,
    draft_folder,
    read_state,
    remove_draft,
)
from ...teaching.raster import KnownDefect, raster
from ...teaching.replay import Replay, Replayed
from ..page.images import shown_image
from ..process import begin_process
from ..settings import Station

log = logging.getLogger("visionad")
NICE = 10


def main(pipe: Connection, path: str, simulate: bool) -> None:
    """Run the process until the front closes the pipe or says stop.

    Args:
        pipe: to the front.
        path: station file.
        simulate: as ``visionad station --simulate``.
    """
    if sys.platform != "win32":
        os.nice(NICE)
    teacher: Teacher | None = None
    try:
        teacher = Teacher(pipe, begin_process("teach", path, simulate))
        teacher.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the front is gone
    finally:
        if teacher is not None:
            teacher.close()
        os._exit(0)


class Teacher:
    """Drafts of a station. One of them is open at a time.

    Args:
        pipe: to the front.
        station: the station file.
    """

    def __init__(self, pipe: Connection, station: Station) -> None:
        self._pipe, self._settings = pipe, station.settings
        self._folder = drafts_folder(station)
        self._draft: Draft | None = None
        self._inspector: Inspector | None = None
        self._waiting: deque[tuple[int, Path, str, bool | None]] = deque()
        self._of, self._planned, self._unreadable = "", 0, 0
        self._line: dict[
            str, tuple[int, str]
        ] = {}  # class -> bank version of its last collected part, digest at the beginning

    def run(self) -> None:
        """Answer the front, and try kept parts on a draft while nothing is asked."""
        while True:
            if self._waiting and not self._pipe.poll():
                self._try_next()
                continue
            command, *rest = self._pipe.recv()
            if command == "stop":
                return
            ticket, *values = rest
            self._pipe.send(("answered", ticket, *self._answer(command, values)))

    def close(self) -> None:
        """Release the model."""
        if self._inspector is not None:
            self._inspector.close()

    def _answer(self, command: str, values: Sequence[Any]) -> tuple[Any, str, str, dict[str, Any]]:
        """Do a command. Return its value; or the code of a refusal, its sentence, and what fills the page's sentence."""
        try:
            return getattr(self, f"do_{command}")(*values), "", "", {}
        except DraftChangedError as exc:
            return None, "changed", str(exc), {"who": exc.who, "version": exc.version}
        except ClassChangedError as exc:
            return None, "live_changed", str(exc), {"version": exc.version}
        except NotReadyError as exc:
            return None, exc.code, str(exc), {}
        except VisionADError as exc:
            return None, "input", str(exc), {}
        except Exception as exc:  # the process must live on: other drafts are in it
            log.exception("draft: %s", command)
            return None, "internal", f"{type(exc).__name__}: {exc}", {}

    # -- commands -----------------------------------------------------------------------------------------------------

    def do_begin(self, name: str, who: str) -> dict[str, Any]:
        """Begin a draft, or go on with the one that there is. A damaged one is put aside, with its images."""
        folder = draft_folder(self._folder, name)
        read_manifest(self._settings.bank, BankManifest)  # without it no other draft can be begun
        if (folder / STATE).is_file() and (why := self._damage(name)):
            log.warning("draft of %s is put aside: %s", name, why)
            self._close_draft()
            try:
                folder.rename(folder.with_name(f"{folder.name}.damaged-{secrets.token_hex(4)}"))
            except OSError as exc:
                raise VisionADError(f"{folder} is damaged, and cannot be put aside: {exc.strerror}") from None
        if not (folder / STATE).is_file():
            self._close_draft()
            begin_draft(folder, self._settings.bank, name, who)
        return self._facts(self._open(name))

    def do_facts(self, name: str) -> dict[str, Any]:
        """Return the draft as the page shows it."""
        return self._facts(self._open(name))

    def do_discard(self, name: str, version: int) -> dict[str, Any]:
        """Give a draft up, whatever state it is in: its bank is not read. A damaged state has no version to compare."""
        folder = draft_folder(self._folder, name)
        if not folder.is_dir():
            raise _no_draft(name)
        try:
            state = read_state(folder)
        except VisionADError as exc:
            log.warning("%s", exc)
        else:
            if version != state.version:
                raise DraftChangedError(state.who, state.version)
        if self._draft is not None and self._draft.folder == folder:
            self._close_draft()
        remove_draft(folder)
        return {"class": name}

    def do_add(self, name: str, version: int, rgb: NDArray[np.uint8], source: str, who: str) -> dict[str, Any]:
        """Add a good part."""
        draft = self._checked(name, version)
        draft.add(rgb, source, who)
        return self._facts(draft)

    def do_remove(self, name: str, version: int, support: str, who: str) -> dict[str, Any]:
        """Take a part out."""
        draft = self._checked(name, version)
        draft.remove(support, who)
        return self._facts(draft)

    def do_decide(self, name: str, version: int, support: str, reason: str, who: str) -> dict[str, Any]:
        """Note why a part that stands out is good all the same."""
        draft = self._checked(name, version)
        draft.decide(support, reason, who)
        return self._facts(draft)

    def do_regions(self, name: str, version: int, regions: Mapping[str, Any] | None, who: str) -> dict[str, Any]:
        """Change what is inspected."""
        draft = self._checked(name, version)
        draft.set_regions(None if regions is None else spec_from_json(regions), who)
        return self._facts(draft)

    def do_raster(
        self, name: str, regions: Mapping[str, Any] | None, defects: Sequence[KnownDefect] = ()
    ) -> dict[str, Any]:
        """Return what regions would inspect, and which known defects they would hide; nothing is changed."""
        draft = self._open(name)
        assert self._inspector is not None
        spec = RoiSpec(image_size=draft.image_size) if regions is None else spec_from_json(regions)
        draft.check_size(spec)
        return raster(name, spec, self._inspector.manifest.identity, defects)

    def do_collect(self, name: str, version: int, on: bool, who: str) -> dict[str, Any]:
        """Begin or end to collect the line's parts."""
        draft = self._checked(name, version)
        draft.collect(on, who)
        self._line[name] = 0, self._live_digest(name)
        return self._facts(draft)

    def do_take(
        self, name: str, part: int, text: str, camera: str, rgb: NDArray[np.uint8] | None, bank_version: int
    ) -> dict[str, Any]:
        """Score a part of the line, unless the line's class was changed since collecting began."""
        draft = self._open(name)
        if draft.state.collecting and self._line_changed(draft, bank_version):
            draft.end_collecting("the line's class was changed")
        draft.take(part, text, camera, rgb)
        return {"collected": len(draft.state.collected)}

    def do_ended(self, name: str, why: str) -> dict[str, Any]:
        """End collecting, because the line is not as it was."""
        self._open(name).end_collecting(why)
        return {}

    def do_look(self, name: str, version: int, pixels: str, strike: bool, reason: str, who: str) -> dict[str, Any]:
        """Note that a person has looked at a collected part."""
        draft = self._checked(name, version)
        draft.look(pixels, strike, reason, who)
        return self._facts(draft)

    def do_threshold(self, name: str, version: int, max_false_reject: float, who: str) -> dict[str, Any]:
        """Calibrate with the collected parts."""
        draft = self._checked(name, version)
        draft.use_threshold(max_false_reject, who)
        return self._facts(draft)

    def do_by_hand(self, name: str, version: int, value: float, reason: str, who: str) -> dict[str, Any]:
        """Set a threshold that a person typed."""
        draft = self._checked(name, version)
        draft.type_threshold(value, reason, who)
        return self._facts(draft)

    def do_effect(self, name: str, version: int, parts: Sequence[tuple[int, str, str, bool | None]]) -> dict[str, Any]:
        """Begin to try kept parts on the draft: number, path of the image, verdict then, what a person said."""
        draft = self._checked(name, version)
        draft.effect = []
        self._waiting = deque((part, Path(path), was, was_good) for part, path, was, was_good in parts)
        self._of, self._planned, self._unreadable = name, len(parts), 0
        return self._facts(draft)

    def do_what_if(self, name: str, threshold: float) -> dict[str, Any]:
        """Return what a threshold would have done with the parts that were tried."""
        return self._open(name).effect_facts(threshold)

    def do_live(self, name: str, version: int, who: str) -> dict[str, Any]:
        """Put the draft into the line's bank, as one version."""
        draft = self._checked(name, version)
        found = draft.go_live(self._settings.bank, who)
        self._close_draft()
        return {"version": found, "class": name}

    def do_image(self, name: str, which: str) -> dict[str, Any]:
        """Return a part's image as the page shows it, with the regions that differ."""
        rgb, result = self._open(name).image(which)
        regions = () if result is None else result.regions
        shown = shown_image("", rgb, result)
        shown["regions"] = [{"bbox": one.bbox, "polygon": one.polygon, "score": one.score} for one in regions]
        return {**shown, "score": None if result is None else result.score}

    def do_version_back(self, name: str, version: int, who: str) -> dict[str, Any]:
        """Bring a class of an older version back, as a new version."""
        bank = self._settings.bank
        manifest = adopt_class(bank, bank, name, f"{name} as in version {version}, by {who}", version=version)
        return {"version": manifest.version, "class": name}

    def do_enroll(self, name: str, rgb: NDArray[np.uint8], source: str) -> dict[str, Any]:
        """Enroll a good part in the line's bank, as one version. A draft that is open stays open."""
        if self._draft is not None:
            with self._opened(self._settings.bank, lazy=True) as inspector:
                return _enrolled(inspector, name, rgb, source)
        if self._inspector is None:
            self._inspector = self._opened(self._settings.bank, lazy=True)
        self._inspector.refresh()
        return _enrolled(self._inspector, name, rgb, source)

    def do_replay(self, cameras: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """Compute an archived part again with the bank version that its record names, bit by bit.

        Args:
            cameras: camera → path of its image, and its object of ``predict --json``.
        """
        settings = self._settings
        if self._inspector is None:
            self._inspector = self._opened(settings.bank, lazy=True)
        replay = Replay(self._inspector, settings.bank, preset=settings.preset)
        try:
            with tempfile.TemporaryDirectory() as folder:
                lines = Path(folder) / "part.jsonl"
                lines.write_text(
                    "".join(json.dumps({**facts, "image": path}) + "\n" for path, facts in cameras.values())
                )
                found = dict(zip(cameras, replay.run(lines), strict=True))
        finally:
            replay.close()
        return {"cameras": {camera: _told(one) for camera, one in found.items()}}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _opened(self, bank: Path, lazy: bool = False) -> Inspector:
        settings = self._settings
        return Inspector.open(
            settings.model, bank, backend=settings.backend, precision=settings.precision, preset=settings.preset,
            threads=settings.threads, lazy_bank=lazy,
        )  # fmt: skip

    def _open(self, name: str) -> Draft:
        if self._draft is not None and self._draft.name == name:
            return self._draft
        folder = draft_folder(self._folder, name)
        if not (folder / STATE).is_file():
            raise _no_draft(name)
        self._close_draft()
        read_manifest(folder / BANK, BankManifest)  # an inspector begins a new bank where there is none
        inspector = self._opened(folder / BANK)
        try:
            self._draft = Draft(folder, inspector)
        except BaseException:
            inspector.close()  # or it would be taken for that of the line's bank
            raise
        self._inspector = inspector
        return self._draft

    def _live_digest(self, name: str) -> str:
        return entry_digest(read_manifest(self._settings.bank, BankManifest).classes.get(name))

    def _line_changed(self, draft: Draft, bank_version: int) -> bool:
        """Return whether the line's class is another than at the beginning. Its bank is read where a part names another version."""
        version, digest = self._line.get(draft.name, (0, draft.state.base))
        if bank_version == version:
            return False
        self._line[draft.name] = bank_version, digest
        return self._live_digest(draft.name) != digest

    def _damage(self, name: str) -> str:
        """Return why a draft cannot be worked on, since its own files are damaged; empty if they are not."""
        try:
            read_state(draft_folder(self._folder, name))
        except VisionADError as exc:
            return str(exc)
        try:
            self._open(name).facts()
        except (BankError, ImageError) as exc:
            return str(exc)
        return ""

    def _checked(self, name: str, version: int) -> Draft:
        draft = self._open(name)
        draft.check(version)
        return draft

    def _close_draft(self) -> None:
        self._draft, self._waiting = None, deque()
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None

    def _facts(self, draft: Draft) -> dict[str, Any]:
        planned = self._planned if self._of == draft.name else 0
        trying = {"planned": planned, "waiting": len(self._waiting), "unreadable": self._unreadable if planned else 0}
        live = read_manifest(self._settings.bank, BankManifest)
        return {
            **draft.facts(),
            "trying": trying,
            "live_version": live.version,
            "live_changed": entry_digest(live.classes.get(draft.name)) != draft.state.base,
        }

    def _try_next(self) -> None:
        part, path, was, was_good = self._waiting.popleft()
        assert self._draft is not None
        try:
            self._draft.try_on(part, path, was, was_good)
        except VisionADError as exc:
            self._unreadable += 1
            log.warning("draft of %s: %s", self._of, exc)


def _no_draft(name: str) -> NotReadyError:
    return NotReadyError("no_draft", f"there is no draft of {name}; begin one")


def _enrolled(inspector: Inspector, name: str, rgb: NDArray[np.uint8], source: str) -> dict[str, Any]:
    full = to_rgb(rgb) if rgb.ndim == 2 else rgb
    data = png_file(full)
    try:
        version = inspector.enroll_image(name, support_record(data, full, source), full, data, ".png")
    except ImageError:
        raise
    except VisionADError as exc:  # as `visionad serve` tells an image from a bank that does not allow it
        raise NotReadyError("not_enrolled", str(exc)) from None
    return {"version": version, "class": name}


def _told(one: Replayed) -> dict[str, Any]:
    if one.skipped is not None:
        return {"same": False, "stage": "record", "expected": "a result", "got": one.skipped}
    if one.difference is None:
        return {"same": True}
    return {"same": False, **{name: str(value)[:300] for name, value in one.difference._asdict().items()}}


def drafts_folder(station: Station) -> Path:
    """Return the folder of a station's drafts, beside its records."""
    return station.settings.records.parent / "drafts"
