"""The Modbus register map: one table that the sink, the PLC simulator and the CSV of the docs are made from."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..front.cycle import OK, REASONS
from ..sink import StationState

MAP_VERSION = 1
READ_ORIGIN = 100
"""Holding register that the input registers are repeated from, for clients that read holding registers only."""
PART_REGISTERS = 16
WRITE_COUNT = 4 + PART_REGISTERS


class Register(NamedTuple):
    """One row of the map."""

    space: str
    address: int
    words: int
    name: str
    kind: str
    meaning: str


CONTROL_BITS = ("enable", "trigger", "ack", "clear_fault", "prepare_recipe")
STATUS_BITS = (
    "ready",
    "trigger_ack",
    "busy",
    "valid",
    "pass",
    "reject",
    "fault",
    "missed",
    "overrun",
    "prepared",
    "check_due",
    "simulated",
)
REGISTERS = (
    Register("holding", 0, 1, "control", "bits", "written by the PLC; acts on rising edges, enable on its level"),
    Register("holding", 1, 1, "plc_heartbeat", "uint16", "any change"),
    Register("holding", 2, 1, "recipe_wanted", "uint16", "number of the recipe to prepare"),
    Register("holding", 3, 1, "sequence", "uint16", "number of the part, of the PLC"),
    Register("holding", 4, PART_REGISTERS, "part", "ascii", "part id, 32 characters, high byte first, ended by 0"),
    Register("input", 0, 1, "status", "bits", "pass and reject are always opposite"),
    Register("input", 1, 1, "heartbeat", "uint16", "counts ten times a second while the worker answers"),
    Register("input", 2, 1, "acquisition", "uint16", "number of the last accepted trigger, low 16 bits"),
    Register("input", 3, 1, "inspection", "uint16", "number of the offered result, low 16 bits"),
    Register("input", 4, 1, "result_sequence", "uint16", "sequence of the offered result"),
    Register("input", 5, 1, "evaluation", "uint16", "0 undefined, 1 ok, 2 anomalous, 3 not decidable"),
    Register("input", 6, 1, "reason", "uint16", "; ".join(f"{i} {name}" for i, name in enumerate(REASONS))),
    Register("input", 7, 1, "recipe", "uint16", "prepared recipe; 0 for none"),
    Register("input", 8, 1, "result_recipe", "uint16", "recipe of the offered result"),
    Register("input", 9, 2, "score", "float32", "high word first"),
    Register("input", 11, 2, "threshold", "float32", "high word first"),
    Register("input", 13, 1, "milliseconds", "uint16", "from the trigger to the result"),
    Register("input", 14, 1, "bank_version", "uint16", "low 16 bits"),
    Register("input", 15, 1, "waiting", "uint16", "results that were not acknowledged"),
    Register("input", 16, 1, "map_version", "uint16", f"{MAP_VERSION}"),
)
READ_COUNT = 17


def encode(state: StationState, heartbeat: int, bits: Mapping[str, bool]) -> list[int]:
    """Return the input registers.

    Args:
        state: of the station.
        heartbeat: counter.
        bits: those of the sink itself: ``enable``, ``trigger_ack``, ``missed``.
    """
    offered = state.offered
    is_pass = offered is not None and offered.evaluation == OK
    status = {
        "ready": state.ready and bits["enable"],
        "trigger_ack": bits["trigger_ack"],
        "busy": state.phase in ("busy", "preparing", "starting"),
        "valid": offered is not None,
        "pass": is_pass,
        "reject": not is_pass,
        "fault": state.phase == "fault",
        "missed": state.missed > 0 or bits["missed"],
        "overrun": state.overrun > 0,
        "prepared": state.prepared,
        "check_due": state.check_due,
        "simulated": state.simulated,
    }
    registers = [sum(1 << i for i, name in enumerate(STATUS_BITS) if status[name]), heartbeat, state.acquisition]
    if offered is None:
        registers += [0, 0, 0, 0, state.recipe, 0, 0, 0, 0, 0, 0, 0]
    else:
        registers += [
            offered.id,
            offered.sequence,
            offered.evaluation,
            REASONS.index(offered.reason),
            state.recipe,
            offered.recipe,
        ]
        registers += [
            *_words(offered.score),
            *_words(offered.threshold),
            min(65535, round(offered.latency_ms)),
            offered.bank_version,
        ]
    return [value & 0xFFFF for value in (*registers, state.waiting, MAP_VERSION)]


def decode(registers: Sequence[int]) -> dict[str, object]:
    """Return the input registers by name: bits as booleans, floats as numbers."""
    values: dict[str, object] = {}
    for row in REGISTERS:
        if row.space != "input":
            continue
        words = registers[row.address : row.address + row.words]
        if row.kind == "float32":
            values[row.name] = struct.unpack(">f", struct.pack(">HH", *words))[0]
        elif row.kind == "bits":
            values |= {name: bool(words[0] >> bit & 1) for bit, name in enumerate(STATUS_BITS)}
        else:
            values[row.name] = words[0]
    return values


def part_text(registers: Sequence[int]) -> str:
    """Return the part id of :data:`PART_REGISTERS` registers; other bytes than printable ASCII become ``?``."""
    raw = b"".join(struct.pack(">H", word) for word in registers).split(b"\0")[0]
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw).strip()


def part_registers(part: str) -> list[int]:
    """Return the registers of a part id, of which 32 characters fit."""
    raw = part.encode("ascii", "replace")[: 2 * PART_REGISTERS].ljust(2 * PART_REGISTERS, b"\0")
    return list(struct.unpack(f">{PART_REGISTERS}H", raw))


def as_csv() -> str:
    """Return the map as CSV."""
    lines = ["space,address,count,name,kind,meaning"]
    lines += [f'{r.space},{r.address},{r.words},{r.name},{r.kind},"{r.meaning}"' for r in REGISTERS]
    for register, names in (("control", CONTROL_BITS), ("status", STATUS_BITS)):
        lines += [f"{register} bit,{bit},1,{name},bool," for bit, name in enumerate(names)]
    return "\n".join(lines) + "\n"


def _words(value: float | None) -> list[int]:
    return list(struct.unpack(">HH", struct.pack(">f", 0.0 if value is None else value)))
