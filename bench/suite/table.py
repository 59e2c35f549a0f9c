"""The suite's result as Markdown: the machine, what ran, and each number in a table of its kind."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.grid import grid
from bench.table import markdown as benches

GB = 1e9
PROTOCOL_STEPS = 100_000
OWN_MEMORY = 3 * GB  # of a device: at most what a driver and one empty context hold


def markdown(document: dict[str, Any]) -> str:
    """The whole page. `document` is what record.py describes."""
    results = {row["stage"]: row["result"] for row in document["stages"] if row.get("result")}
    parts = [
        heading(document),
        *machine(document["machine"]),
        *([stages(document["stages"])] if document["stages"] else []),
    ]
    profiles = [result for name, result in results.items() if name.startswith("profile-")]
    sections: list[tuple[str, Any, Callable[[Any], str]]] = [
        ("A step as training runs it", profiles, steps),
        ("Phases, each alone", results.get("phases", {}).get("records"), benches),
        ("Kernels", results.get("kernels", {}).get("records"), benches),
        ("Device memory", results.get("memory", {}).get("presets"), memory),
        ("Training", document["training"], training),
    ]
    parts += [f"## {title}\n\n{show(found)}" for title, found, show in sections if found]
    return "\n\n".join(parts) + "\n"


def heading(document: dict[str, Any]) -> str:
    return f"# {document['machine']['device']}, commit {document['machine']['commit']}, begun {document['begun']}"


def machine(found: dict[str, Any]) -> list[str]:
    """What everything below was measured on."""
    versions = ", ".join(
        f"{name} {found[name]}" for name in ("torch", "cuda", "triton", "python", "driver") if found.get(name)
    )
    lines = [f"{found['device']}: {versions}; {found['threads']} CPU threads."]
    if "clocks.sm" in found:
        now, most = (
            f"SM {found[f'clocks.{which}sm']}, memory {found[f'clocks.{which}mem']} MHz" for which in ("", "max.")
        )
        lines.append(f"Clocks when it began: {now}; at most: {most}.")
    if "memory_total" in found:
        lines.append(
            f"Memory free when it began: {found['memory_free'] / GB:.1f} of {found['memory_total'] / GB:.1f} GB."
        )
        if found["memory_total"] - found["memory_free"] > OWN_MEMORY:
            lines.append("Others held the rest, and may have slowed down what is below.")
    if found["dirty"]:
        lines.append("The working tree differed from the commit.")
    elif found["dirty"] is None:
        lines.append("The tree came without its git history: whether it differed from the commit is not known.")
    return [" ".join(lines)]


def stages(rows: Sequence[dict[str, Any]]) -> str:
    table = [
        [row["stage"], row["status"], seconds(row), told(row), row.get("date", ""), f"`{row['command']}`"]
        for row in rows
    ]
    return grid(
        ["stage", "status", "seconds", "said", "date", "command"], [[cell(text) for text in row] for row in table]
    )


def seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.0f}" if "seconds" in row else "-"


def told(row: dict[str, Any]) -> str:
    """What a stage found, in a few words; why it ended otherwise than it should have."""
    result, words = row.get("result") or {}, [row["reason"]] if row.get("reason") else []
    words += [f"{result[name]} {name}" for name in ("passed", "failed", "error", "skipped") if result.get(name)]
    if "problems" in result:
        words += result["problems"] or ["no problems"]
    if "step_ms" in result:
        words.append(f"{result['step_ms']:.3g} ms a step")
    words += [f"{found['preset']} {found['bytes']['total'] / GB:.2f} GB" for found in result.get("presets", ())]
    return "; ".join(words)


def steps(profiles: Sequence[dict[str, Any]]) -> str:
    header = [
        "preset",
        "game",
        "compile",
        "ms a step",
        "p20 - p80",
        "of floor",
        "launches",
        "host reads",
        "100k steps, minutes",
        "most memory, GB",
    ]
    return grid(header, [step_cells(found) for found in profiles])


def step_cells(found: dict[str, Any]) -> list[str]:
    return [
        found["preset"],
        f"{found['game']}, {found['num_envs']} x {found['env_backend']}",
        f"{found['compile']}, {found['precision']}",
        f"{found['step_ms']:.3g}",
        f"{found['step_ms_p20']:.3g} - {found['step_ms_p80']:.3g}",
        f"{found['fraction_of_floor']:.1%}",
        f"{found['launches']:,.0f}",
        f"{found['host_reads']:g}",
        f"{found['step_ms'] * PROTOCOL_STEPS / 60e3:.1f}",
        f"{found['peak_memory_bytes'] / GB:.2f}",
    ]


def memory(presets: Sequence[dict[str, Any]]) -> str:
    return grid(
        ["preset", "on", "counted, GB", "measured tensors, GB", "reserved by the allocator, GB"],
        [memory_cells(found) for found in presets],
    )


def memory_cells(found: dict[str, Any]) -> list[str]:
    measured = found.get("measured")
    cells = (
        [f"{max(measured['peaks'].values()) / GB:.2f}", f"{measured['reserved'] / GB:.2f}"] if measured else ["-", "-"]
    )
    return [
        found["preset"],
        f"{found['device_type']} {found['precision']}",
        f"{found['bytes']['total'] / GB:.2f}",
        *cells,
    ]


def training(runs: Sequence[dict[str, Any]]) -> str:
    header = [
        "game",
        "preset, seed",
        "status",
        "steps",
        "minutes",
        "ms a step",
        "score (95 % interval)",
        "human-normalised",
        "episodes",
        "commits",
    ]
    table = grid(header, [[cell(text) for text in training_cells(run)] for run in runs])
    commands = dict.fromkeys(
        command for run in runs for command in (*(call["command"] for call in run["calls"]), run["evaluate_command"])
    )
    return "\n".join([table, "", *(f"- `{command}`" for command in commands)])


def training_cells(run: dict[str, Any]) -> list[str]:
    return [
        run["game"],
        f"{run['preset']}, {run['seed']}",
        run["status"] + (f": {run['reason']}" if run.get("reason") else ""),
        f"{run['step']:,} of {run['steps']:,}",
        f"{run['training_seconds'] / 60:.1f}",
        f"{run['ms_per_step']:.3g}" if run.get("ms_per_step") else "-",
        *score_cells(run.get("evaluation")),
        ", ".join(dict.fromkeys(call["commit"] for call in run["calls"])),
    ]


def score_cells(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return ["-", "-", "-"]
    low, high = found["mean_interval_95"]
    normalised = found["human_normalised"]
    return [
        f"{found['mean']:.2f} ({low:.2f} - {high:.2f})",
        "-" if normalised is None else f"{normalised:.3f}",
        str(found["episodes"]),
    ]


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")
