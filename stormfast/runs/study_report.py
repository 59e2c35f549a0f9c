"""What a study has found so far: a table of games and arms, and a figure of its learning curves."""

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormfast.errors import UserError
from stormfast.runs.directory import write_whole
from stormfast.runs.study_results import CURVE, read_result
from stormfast.runs.study_runs import Series

HEADER = ("game", "arm", "runs", "mean return", "random", "minutes", "steps", "commit")
UNKNOWN = "-"
COLUMNS = 4  # panels beside each other
DPI = 110


@dataclass(frozen=True)
class Line:
    """The results of an arm on a game."""

    game: str
    arm: str
    entries: list[dict[str, Any]]  # as they are in the result file
    random: dict[str, Any] | None
    expected: int  # runs

    def cells(self, commit: str) -> list[str]:
        """A star marks results of another commit."""
        returns = [entry["mean_return"] for entry in self.entries]
        commits = dict.fromkeys(str(entry.get("commit", "unknown")) for entry in self.entries)
        minutes = [entry["minutes"] for entry in self.entries if entry.get("minutes") is not None]
        steps = sorted({entry["steps"] for entry in self.entries if "steps" in entry})
        return [
            self.game,
            self.arm,
            f"{len(returns)}/{self.expected}",
            mean_sem(returns),
            mean_sem([self.random["mean"]]) if self.random else UNKNOWN,
            f"{statistics.mean(minutes):.1f}" if minutes else UNKNOWN,
            " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))) if steps else UNKNOWN,
            ", ".join(name if name == commit else f"{name}*" for name in commits) or UNKNOWN,
        ]


def lines_of(series: Series) -> list[Line]:
    """A line for each game and arm, also those without a result. Raises: UserError for a damaged result."""
    lines = []
    for game in series.games:
        for arm in series.configs:
            document = read_result(series.run_of(arm, game, 0).result)
            entries = [entry for entry in document["seeds"] if entry["seed"] < series.seeds]
            lines.append(Line(game, arm, entries, document.get("random"), series.seeds))
    return lines


def mean_sem(values: Sequence[float]) -> str:
    """Mean and standard error of the mean, which one value does not have."""
    if not values:
        return UNKNOWN
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3g}" if len(values) > 1 else ""
    mean = statistics.mean(values)
    return (f"{mean:,.0f}" if abs(mean) >= 1_000 else f"{mean:.2f}") + error


def table(series: Series, lines: Sequence[Line]) -> str:
    """Markdown, padded so that it reads well on a terminal too."""
    rows = [HEADER, *(line.cells(series.commit) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [
        "Mean return of the runs' evaluations ± its standard error over runs; minutes of training a run.",
        *([f"\\* not of the current commit, {series.commit}"] if any("*" in row for row in padded) else []),
    ]
    return "\n".join([*padded, "", *notes])


def write_report(series: Series) -> str:
    """Writes OUT/table.md, and OUT/curves.png where matplotlib is installed. Returns: the table.

    Raises: UserError where they cannot be written.
    """
    lines = lines_of(series)
    text = table(series, lines)
    document = f"# {series.study.question}\n\nStudy {series.name}, preset {preset_of(series)}\n\n{text}\n"
    write(series.out / "table.md", document.encode())
    if image := draw_curves(series, lines):
        write(series.out / "curves.png", image)
    return text


def preset_of(series: Series) -> str:
    return next(iter(series.configs.values())).preset


def write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from None


# --- the figure --------------------------------------------------------------------------------------------------


def draw_curves(series: Series, lines: Sequence[Line]) -> bytes | None:
    """Curves over minutes as PNG: a panel for each game, a colour for each arm, a thin line for each seed.

    Returns: None without matplotlib, or where there is nothing to draw yet.
    """
    shown = [line for line in lines if line.entries]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not shown:
        return None
    games = list(dict.fromkeys(line.game for line in shown))
    columns = min(COLUMNS, len(games))
    rows = -(-len(games) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.4 * rows), layout="constrained")
    axes = dict(zip(games, figure.subplots(rows, columns, squeeze=False).flat, strict=False))
    colors = {arm: f"C{k}" for k, arm in enumerate(series.configs)}
    for line in shown:
        draw_line(axes[line.game], line, series.study.show, colors[line.arm])
    for game, axis in axes.items():
        axis.set(title=game, xlabel="minutes", ylabel=CURVE.get(series.study.show, series.study.show))
        axis.legend(fontsize=7)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def draw_line(axis: Any, line: Line, show: str, color: str) -> None:
    name = CURVE.get(show, show)
    for k, entry in enumerate(line.entries):
        curve = entry.get("curve", {})
        pairs = zip(curve.get("seconds", ()), curve.get(name, ()), strict=False)
        points = [(seconds / 60, value) for seconds, value in pairs if None not in (seconds, value)]
        x, y = zip(*points, strict=True) if points else ((), ())
        axis.plot(x, y, color=color, linewidth=0.8, label=None if k else line.arm)
    if line.random and name == "return":
        axis.axhline(line.random["mean"], color="grey", linewidth=0.8, linestyle=":")
