"""A comparison: the benches of two sides, what their ratios say, and the table of it."""

import dataclasses
import json
import statistics
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.comparing.ratios import AGAIN, CONFIDENCE, Ratio, Verdict, paired_ratio, unpaired_ratio
from bench.comparing.sides import Choice, Rounds, Side, Timing, copies_of, rounds_of, time_alone, time_in_turn
from stormfast.errors import UserError
from stormfast.runs.progress import log_line

SAVED = "A saved run is from another time: what changed on the machine since is in the ratios. Only --against REF, in turn, is free of that."
SAME_MACHINE = ("device", "torch", "triton", "threads", "driver")  # what a saved run should have in common


@dataclass(frozen=True)
class Compared:
    """A bench of both sides: its ratio, and the medians of all rounds, seconds a call."""

    ratio: Ratio
    old: float
    new: float


@dataclass
class Comparison:
    """What was found.

    Attributes:
        how: "in turn", "saved" or "counts only"; old: what the new side was compared with, for people.
        counts: where counts differ, as bench/counts.py's `differences` gives them; None where none were taken.
        notes: lines that a reader needs to judge the ratios.
    """

    how: str
    limit: float
    choice: Choice
    timing: Timing = field(default_factory=Timing)
    benches: dict[str, Compared] = field(default_factory=dict)
    old: str = ""
    counts: list[Any] | None = None
    notes: list[str] = field(default_factory=list)

    def verdict(self, bench: str) -> Verdict:
        return self.benches[bench].ratio.verdict(self.limit)

    def having(self, verdict: Verdict) -> list[str]:
        return [bench for bench in self.benches if self.verdict(bench) == verdict]

    @property
    def worse(self) -> list[str]:
        """Benches that are slower or fail in the new side, and counts that rose."""
        return [
            *self.having("slower"),
            *self.timing.failures.get("new", {}),
            *(each.name for each in self.counts or [] if each.worse),
        ]

    @property
    def empty(self) -> bool:
        """Whether nothing could be compared."""
        return not self.benches and self.counts is None


def in_turn(old: Side, new: Side, choice: Choice, limit: float, scratch: Path) -> Comparison:
    """Times all benches, and those that may be slower again until it is clear, AGAIN times at most. Raises: UserError, TurnsError."""
    timing = time_in_turn(old, new, choice, scratch)
    comparison = Comparison("in turn", limit, choice, timing, old=old.commit)
    judge(comparison)
    for _ in range(AGAIN):
        doubtful = tuple(bench for bench, found in comparison.benches.items() if found.ratio.doubtful(limit))
        if not doubtful:
            break
        log_line(f"{len(doubtful)} benches may be slower: timed again ...")
        for bench, launches in time_in_turn(
            old, new, replace(choice, paths=doubtful, keyword=""), scratch
        ).pairs.items():
            timing.pairs[bench] += launches
        judge(comparison)
    return comparison


def judge(comparison: Comparison) -> None:
    """Ratios of all rounds so far."""
    for bench, launches in comparison.timing.pairs.items():
        olds, news = ([seconds for pair in launches for seconds in pair[i]] for i in (0, 1))
        comparison.benches[bench] = Compared(paired_ratio(launches), statistics.median(olds), statistics.median(news))


def with_saved(new: Side, saved: Path, choice: Choice, limit: float, scratch: Path) -> Comparison:
    """Raises: UserError for a saved run without the times of rounds; else as sides.time_alone."""
    content = json.loads(saved.read_text())
    try:
        before, machine, date = rounds_of(content), dict(content["machine_info"]), content["datetime"][:10]
    except KeyError as error:
        raise UserError(f"{saved} is no run saved by `make bench`: it lacks {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{saved} is no run saved by `make bench`: {error}") from None
    rounds, timing = time_alone(new, choice, scratch)
    comparison = Comparison(
        "saved",
        limit,
        choice,
        timing,
        old=f"{saved.name} of {date}, commit {machine.get('commit', 'unknown')}",
        notes=[SAVED],
    )
    for bench in [bench for bench in rounds if bench in before]:
        ratio = unpaired_ratio(before[bench], rounds[bench])
        comparison.benches[bench] = Compared(ratio, statistics.median(before[bench]), statistics.median(rounds[bench]))
    timing.failures["saved"] = {bench: "is not in the saved run" for bench in rounds if bench not in before}
    comparison.notes += machine_notes(
        machine, timing.machine.get("new", {}), copies_of(content), timing.copies.get("new", [])
    )
    return comparison


def machine_notes(before: dict[str, Any], now: dict[str, Any], copies_before: Rounds, copies_now: Rounds) -> list[str]:
    """How the machine of a saved run differs, and how fast either copied memory."""
    notes = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in SAME_MACHINE
        if before.get(name) != now.get(name)
    ]
    if copies_before and copies_now:
        then, here = statistics.median(copies_before), statistics.median(copies_now)
        notes.append(f"A copy moved {then / 1e9:.1f} GB/s then and {here / 1e9:.1f} GB/s now (x{here / then:.2f}).")
    if "load" in before and "load" in now:
        notes.append(f"Load average {before['load']:.1f} then, {now['load']:.1f} now.")
    return notes


# --- for people and for programs ---------------------------------------------------------------------------------


def show(comparison: Comparison) -> str:
    """The table and what surrounds it."""
    parts = [heading(comparison), *(f"note: {note}" for note in comparison.notes)]
    if comparison.benches:
        parts += ["", table(comparison), "", summary(comparison)]
    for side, failures in comparison.timing.failures.items():
        parts += [f"not compared: {side}: {bench}: {why}" for bench, why in failures.items()]
    if comparison.counts is not None:
        parts += [
            f"count: {each.name}: {times(each.old, each.new)}{'  WORSE' if each.worse else ''}"
            for each in comparison.counts
        ]
        parts.append(f"counts: {len(comparison.counts)} differ, {sum(each.worse for each in comparison.counts)} rose")
    if comparison.empty:
        parts.append("nothing could be compared")
    return "\n".join(parts)


def heading(comparison: Comparison) -> str:
    choice = comparison.choice
    if comparison.how == "counts only":
        return f"counts of this checkout against {comparison.old or 'bench/counts.json'}"
    how = f"{choice.rounds} rounds x {choice.launches} launches{' in turn' if comparison.how == 'in turn' else ''}"
    return f"this checkout against {comparison.old}: {how}, intervals of {CONFIDENCE:.0%}, limit {comparison.limit:g}"


def table(comparison: Comparison) -> str:
    """Markdown, a row a bench; columns aligned for a terminal."""
    rows = [("bench", "old", "new", "new / old", "interval", "verdict")]
    for bench, each in comparison.benches.items():
        ratio, verdict = each.ratio, comparison.verdict(bench)
        shown = verdict.upper() if verdict == "slower" else verdict
        interval = f"{ratio.low:.3f} - {ratio.high:.3f}"
        rows.append(
            (bench.removeprefix("bench/"), seconds(each.old), seconds(each.new), f"{ratio.value:.3f}", interval, shown)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def summary(comparison: Comparison) -> str:
    found = Counter(comparison.verdict(bench) for bench in comparison.benches)
    line = f"{len(comparison.benches)} benches: " + ", ".join(
        f"{found[verdict]} {verdict}" for verdict in ("slower", "faster", "same", "unclear")
    )
    return line + ("; more --rounds or --launches tell what is unclear" if found["unclear"] else "")


def seconds(value: float) -> str:
    unit, factor = next(
        ((unit, factor) for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if value >= factor), ("ns", 1e-9)
    )
    return f"{value / factor:.3g} {unit}" if value < 1000 else f"{value:.0f} s"


def times(old: int | None, new: int | None) -> str:
    """A count's change: 3 -> 6 (x2.00); one side may lack it."""
    ratio = f" (x{new / old:.3g})" if old and new is not None else ""
    return f"{'none' if old is None else format(old, ',')} -> {'none' if new is None else format(new, ',')}{ratio}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, as JSON types."""
    timing = comparison.timing
    return {
        "against": comparison.old,
        "how": comparison.how,
        "limit": comparison.limit,
        "confidence": CONFIDENCE,
        "rounds": comparison.choice.rounds,
        "launches": comparison.choice.launches,
        "machine_info": timing.machine.get("new", {}),
        "notes": comparison.notes,
        "benches": [
            {
                "bench": bench,
                "old_seconds": each.old,
                "new_seconds": each.new,
                **dataclasses.asdict(each.ratio),
                "verdict": comparison.verdict(bench),
            }
            for bench, each in comparison.benches.items()
        ],
        "not_compared": timing.failures,
        "counts": None if comparison.counts is None else [dataclasses.asdict(each) for each in comparison.counts],
        "worse": comparison.worse,
    }
