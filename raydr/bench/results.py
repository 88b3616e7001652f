"""What a benchmark found: pairs and peers, as JSON, as Markdown, and against an earlier file."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydr.bench.fits import Line, fit, median, moved, ratios, steady
from raydr.bench.meter import Recording
from raydr.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """One arm of one pair: its lines, its memory, and how busy the machine was."""

    seconds: Line  # T = a + b N
    cpu: Line  # CPU-seconds over all processes, likewise
    total_seconds: float
    peak_bytes: int
    others: float
    load: float


def measured(recording: Recording, points: list[tuple[float, float]]) -> Measured:
    """Lines through `points` = (units done, seconds since the start) of one recorded run."""
    kept = steady(points)
    cpu = fit(recording.cpu_points(kept))
    return Measured(fit(kept), cpu, recording.seconds, recording.peak_bytes, recording.others, recording.load)


@dataclass(frozen=True)
class Pair:
    """Pipeline against bare loop; everything a run of the command says of it."""

    name: str
    unit: str
    pipeline: float  # units/s in steady state, median over pairs
    bare: float
    efficiency: float
    spread: tuple[float, float]  # lowest and highest ratio
    ratios: tuple[float, ...]
    # The same from CPU-seconds a unit: what the framework costs whatever else the machine does.
    cpu_efficiency: float
    cpu_spread: tuple[float, float]
    cpu_seconds: dict[str, float]  # a unit, per arm
    startup_seconds: dict[str, float]
    peak_bytes: dict[str, int]
    load: float
    others: float  # cores that other processes kept busy, mean
    # Efficiency that the stage is to reach.
    bar: float | None = None
    flops: float | None = None  # of one unit
    mfu: float | None = None
    note: str = ""


def pair(
    name: str,
    unit: str,
    pipeline: list[Measured],
    bare: list[Measured],
    bar: float | None = None,
    flops: float | None = None,
    peak_flops: float | None = None,
    note: str = "",
) -> Pair:
    """The pair of `pipeline[i]` and `bare[i]`, which ran next to each other."""
    arms = {"pipeline": pipeline, "bare": bare}
    wall = ratios([m.seconds.each for m in pipeline], [m.seconds.each for m in bare])
    cpu = ratios([m.cpu.each for m in pipeline], [m.cpu.each for m in bare])
    rate = {arm: 1 / median(m.seconds.each for m in runs) for arm, runs in arms.items()}
    both = [*pipeline, *bare]
    return Pair(
        name=name,
        unit=unit,
        pipeline=rate["pipeline"],
        bare=rate["bare"],
        efficiency=wall.median,
        spread=(wall.low, wall.high),
        ratios=wall.values,
        cpu_efficiency=cpu.median,
        cpu_spread=(cpu.low, cpu.high),
        cpu_seconds={arm: median(m.cpu.each for m in runs) for arm, runs in arms.items()},
        startup_seconds={arm: median(m.seconds.start for m in runs) for arm, runs in arms.items()},
        peak_bytes={arm: max(m.peak_bytes for m in runs) for arm, runs in arms.items()},
        load=sum(m.load for m in both) / len(both),
        others=sum(m.others for m in both) / len(both),
        bar=bar,
        flops=flops,
        mfu=flops * rate["pipeline"] / peak_flops if flops and peak_flops else None,
        note=note,
    )


@dataclass(frozen=True)
class Peer:
    """Another way to do a stage's work, measured in the same run as ours."""

    name: str
    stage: str
    unit: str
    rate: float  # units/s
    ours: float  # units/s of ours, measured next to it
    # Ours over theirs, per neighbouring pair of measurements.
    ratios: tuple[float, ...]
    note: str = ""

    @property
    def speedup(self) -> float:
        return median(self.ratios)


@dataclass
class Result:
    """All that one command measured."""

    machine: dict[str, Any]
    pairs: list[Pair] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    # Single values that are no ratio: {name: {"value", "unit", "note"}}.
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, note: str = "") -> None:
        self.values[name] = {"value": value, "unit": unit, "note": note}


def to_json(result: Result) -> str:
    record = {"format": FORMAT} | dataclasses.asdict(result)
    record["peers"] = [dataclasses.asdict(peer) | {"speedup": peer.speedup} for peer in result.peers]
    return json.dumps(_finite(record), indent=1) + "\n"


def _finite(value: Any) -> Any:
    """nan has no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(path: str) -> dict[str, Any]:
    """A result that `--json` wrote. Raises UserError for any other file."""
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--against {path} cannot be read ({error}): name a file that `raydr bench --json` wrote"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"--against {path} is no result of this version: name a file that `raydr bench --json` wrote")
    return record


# Rows of a scaling curve are compared where this column is equal.
SIZES = {"actors": "actors", "plan": "planned_rows", "tree": "rows"}
# Single values and points of curves have no spread: less than this share is never worth a line.
WORTH_SAYING = 0.2


def compare(before: dict[str, Any], after: Result) -> list[str]:
    """What both results hold and where they differ: pairs and peers by their spread, single figures by their change.

    One line a pair and a peer: moved beyond noise, or not to be told. Single values and curves were measured once, so
    their noise is unknown: those that changed by `WORTH_SAYING` are listed, the others counted.
    """
    old = {pair["name"]: pair["ratios"] for pair in before["pairs"]}
    lines = [_line(pair.name, "efficiency", old[pair.name], pair.ratios) for pair in after.pairs if pair.name in old]
    old_peers = {f"{peer['stage']} / {peer['name']}": peer["ratios"] for peer in before["peers"]}
    both = [(f"{peer.stage} / {peer.name}", peer) for peer in after.peers]
    lines += [_line(name, "speed-up", old_peers[name], peer.ratios) for name, peer in both if name in old_peers]
    was, now = _single(before["values"], before["scaling"]), _single(after.values, after.scaling)
    common = [name for name in now if name in was]
    changed = [name for name in common if abs(now[name] - was[name]) > WORTH_SAYING * abs(was[name])]
    for name in changed:
        share = f" ({now[name] / was[name] - 1:+.0%})" if was[name] else ""
        lines.append(f"{name}: {was[name]:.4g} -> {now[name]:.4g}{share}, measured once each: noise unknown")
    if len(common) > len(changed):
        lines.append(f"{len(common) - len(changed)} single figures within {WORTH_SAYING:.0%}")
    return lines


def _single(values: dict[str, dict[str, Any]], scaling: dict[str, Any]) -> dict[str, float]:
    """{name: value} of all figures without a spread, those of curves named by their size."""
    found = {f"{name}, {item['unit']}": item["value"] for name, item in values.items()}
    for curve, size in SIZES.items():
        for row in scaling.get(curve, []):
            found |= {f"{curve} at {row[size]}: {name}": value for name, value in row.items() if name != size}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _line(name: str, what: str, before: Any, after: Any) -> str:
    verdict = moved(before, after) or "within noise"
    shown = [f"{median(values):.3f} [{min(values):.3f}, {max(values):.3f}]" for values in (before, after)]
    return f"{name}: {what} {shown[0]} -> {shown[1]}, {verdict}"


def markdown(result: Result) -> str:
    """Tables of pairs, peers, single values and scaling curves."""
    machine = result.machine
    used = f", {machine['used_cpus']} of them used" if "used_cpus" in machine else ""
    text = [
        f"{machine['cpu']}, {machine['cpus']} cores{used}, torch {machine['torch']}, Ray {machine['ray']}, revision "
        f"{machine['revision']}. Ratios are medians of {machine['repeats']} interleaved pairs [lowest, highest].",
        "",
    ]
    if result.pairs:
        text += [
            "| Stage | Pipeline | Bare loop | Efficiency | Bar | By CPU-seconds | CPU-s a unit, ours / bare "
            "| Start-up, s, ours / bare | Peak, GiB | MFU | Load (others) |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        text += [_row(pair) for pair in result.pairs]
    if result.peers:
        text += ["", "| Peer | Theirs | Ours | Ours / theirs | What |", "|---|---|---|---|---|"]
        text += [
            f"| {peer.stage}: {peer.name} | {peer.rate:.3g} {peer.unit}/s | {peer.ours:.3g} {peer.unit}/s "
            f"| {peer.speedup:.2f} [{min(peer.ratios):.2f}, {max(peer.ratios):.2f}] | {peer.note} |"
            for peer in result.peers
        ]
    if result.values:
        text += ["", "| Value | | |", "|---|---|---|"]
        text += [
            f"| {name} | {item['value']:.4g} {item['unit']} | {item['note']} |" for name, item in result.values.items()
        ]
    for curve in SIZES:
        if result.scaling.get(curve):
            text += [*([""] if text[-1] else []), *_curve(curve, result.scaling[curve])]
    notes = [f"- {pair.name}: {pair.note}" for pair in result.pairs if pair.note]
    return "\n".join([*text, *(["", *notes] if notes else [])]) + "\n"


def _curve(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """A scaling curve as a table: one column a size, so that twelve quantities fit a page."""
    size = SIZES[name]
    head = [f"| {size} | " + " | ".join(f"{row[size]:,}" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    names = [key for key in rows[0] if key != size]
    return head + [f"| {key} | " + " | ".join(f"{row[key]:.4g}" for row in rows) + " |" for key in names]


def _row(pair: Pair) -> str:
    def both(values: dict[str, float], pattern: str) -> str:
        return " / ".join(format(values[arm], pattern) for arm in ("pipeline", "bare"))

    def ratio(value: float, spread: tuple[float, float]) -> str:
        return f"{value:.3f} [{spread[0]:.3f}, {spread[1]:.3f}]"

    memory = " / ".join(f"{pair.peak_bytes[arm] / 2**30:.2f}" for arm in ("pipeline", "bare"))
    cells = [
        pair.name,
        f"{pair.pipeline:.3g} {pair.unit}/s",
        f"{pair.bare:.3g} {pair.unit}/s",
        ratio(pair.efficiency, pair.spread),
        "–" if pair.bar is None else f"{pair.bar:.2f}",
        ratio(pair.cpu_efficiency, pair.cpu_spread),
        both(pair.cpu_seconds, ".4f"),
        both(pair.startup_seconds, ".1f"),
        memory,
        "–" if pair.mfu is None else f"{pair.mfu:.1%}",
        f"{pair.load:.1f} ({pair.others:.1f})",
    ]
    return "| " + " | ".join(cells) + " |"
