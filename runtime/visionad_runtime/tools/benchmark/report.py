"""The report of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_report(report: Mapping[str, Any]) -> str:
    """Format the report of :func:`~visionad_runtime.tools.benchmark.run.run_bench` as one short table per backend."""
    env, model, bank, images = (report[k] for k in ("environment", "model", "bank", "pictures"))
    settings = report["settings"]
    rows = f"{next(iter(bank['rows_per_view'].values())):g}" if bank["rows_per_view"] else "unknown"
    threads = settings["threads"] or "all"
    lines = [
        f"{model['name']}, {model['precision']}, {model['mb']} MB; views {', '.join(report['views'])}",
        f"{images['count']} {images['source']} images of {', '.join(images['sizes'])}, class {images['class']}; bank of "
        f"{rows} rows per view, {bank['mb']} MB" + (f" ({bank['note']})" if "note" in bank else ""),
        f"{env['cpu']}, {env['cores']} cores, {threads} threads; {', '.join(env['gpus']) or 'no GPU'}; "
        f"visionad {env['visionad']} {env['commit'] or ''}".rstrip(),
    ]
    for name, entry in report["backends"].items():
        lines += ["", *_backend(name, entry, settings["batches"][0])]
    if report["against"]:
        lines += ["", f"{'side by side, batch ' + str(settings['batches'][0]):<48} {'p50 ms':>9}   time / that of"]
        lines += [
            f"  {a['what']:<46} {_ms(a['p50'])}   {a['ratio']['median']:.3f} {a['by']}" for a in report["against"]
        ]
    lines.append("")
    for where, peak in report["peaks"].items():
        if peak["gflop_per_s"] is not None:
            lines.append(f"peaks {where}  {peak['gflop_per_s']} GFLOP/s, {peak['gb_per_s']} GB/s ({peak['how']})")
        elif where.startswith("gpu") and env["gpus"]:
            lines.append(f"peaks {where}  not measured: {peak['why_null']}")
    lines += [f"not run    {name}: {why}" for name, why in report["failed"].items()]
    lines += [f"diagram    {path}" for path in report.get("plots", ())]
    return "\n".join(lines)


def _backend(name: str, entry: Mapping[str, Any], batch: int) -> list[str]:
    at, stages = entry["batches"][str(batch)], entry["stages"]
    columns = f"{'p50':>9} {'p95':>9} {'p99':>9}   share"
    lines = [
        f"{name} in {entry['precision']}: "
        + ", ".join(f"{k} {v}" for k, v in entry["details"].items() if k not in ("chosen because", "passed over")),
        f"  {'ms, batch ' + str(batch):<26} {'from the file':<40}from pixels, decoded beforehand",
        f"  {'':<26} {columns} {columns}",
    ]
    for stage in stages["whole"]:
        if stage != "total":
            cells = (_cells(stages[source].get(stage)) for source in ("whole", "pixels"))
            lines.append(f"  {stage:<26} {' '.join(cells)}".rstrip())
    lines += [
        f"  {'to verdict':<26} {_percentiles(at['whole'])} {'':>7} {_percentiles(at['pixels'])}  "
        f"({at['whole']['calls']} and {at['pixels']['calls']} calls)",
        f"  {'bare engine, same views':<26} {_percentiles(at['bare_engine'])}  ({at['bare_engine']['calls']} calls)",
        f"  {'whole : bare engine':<26} {_ratio(at['whole_to_bare_engine'])}",
        f"  {'pixels : bare engine':<26} {_ratio(at['pixels_to_bare_engine'])}",
        f"  {'images per second':<26} "
        + ", ".join(f"{b['pictures_per_s']:g} at {n}" for n, b in entry["batches"].items()),
    ]
    if any(entry["chain_memory_mb"].values()):
        memory = entry["chain_memory_mb"]
        lines.append(
            f"  {'memory of the pipeline':<26} {memory['chain']} MB and banks of {memory['banks']} MB on the GPU, "
            f"{memory['page_locked']} MB page-locked"
        )
    cold, energy = entry["cold_start"], entry["energy"]
    if cold is not None:
        gpu = f", GPU {cold['gpu_memory_mb']} MB" if cold["gpu_memory_mb"] is not None else ""
        lines += [
            f"  {'cold start':<26} {cold['open_s']:.2f} s to open, {cold['first_verdict_s']:.2f} s to the first verdict "
            f"({cold['starts']} starts)",
            f"  {'peak memory':<26} {cold['peak_memory_mb'] if cold['peak_memory_mb'] is not None else '-'} MB{gpu}",
        ]
    if energy["joules_per_picture"] is not None:
        lines.append(f"  {'energy':<26} {energy['joules_per_picture']:.3f} J per image at {energy['watts']:.0f} W")
    for part, roof in entry["roofline"].items():
        if "why_null" in roof:
            lines.append(f"  {'roofline':<26} {part}: {roof['why_null']}")
            continue
        share = (
            f", {roof['share_of_roof']:.0%} of this machine's roof ({roof['bound_by']})"
            if roof["share_of_roof"] is not None
            else ""
        )
        lines.append(
            f"  {'roofline':<26} {part}: {roof['gflop']:g} GFLOP, {roof['mb']:g} MB, {roof['gflop_per_s']:g} GFLOP/s{share}"
        )
    return lines


def _cells(row: Mapping[str, Any] | None) -> str:
    """Format a stage's percentiles and share, or blanks for a missing stage."""
    return f"{'':>37}" if row is None else f"{_percentiles(row)}  {row['share']:>6.1%}"


def _ratio(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['median']:>9.3f}  (median of {ratio['rounds']} rounds, {ratio['lowest']:.3f} to {ratio['highest']:.3f})"


def _percentiles(row: Mapping[str, Any]) -> str:
    return " ".join(_ms(row[k]) for k in ("p50", "p95", "p99"))


def _ms(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>9}"
