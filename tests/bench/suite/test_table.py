"""The Markdown page of a result made by hand: every number is where it belongs."""

import copy

from bench.suite import table

PROFILE = {
    "preset": "storm",
    "game": "Pong",
    "num_envs": 1,
    "env_backend": "ale",
    "compile": "graphs",
    "precision": "bfloat16",
    "step_ms": 6.0,
    "step_ms_p20": 5.9,
    "step_ms_p80": 6.25,
    "fraction_of_floor": 0.456,
    "launches": 2153.0,
    "host_reads": 1.0,
    "peak_memory_bytes": 4_600_000_000,
}
MEMORY = {
    "preset": "fast",
    "device_type": "cuda",
    "precision": "bfloat16",
    "bytes": {"total": 4_400_000_000},
    "measured": {"peaks": {"act": 1, "agent": 3_900_000_000}, "reserved": 4_100_000_000},
}
PHASE = {
    "bench": "act",
    "phase": "act",
    "preset": "storm",
    "seconds": 1e-3,
    "seconds_iqr": 1e-5,
    "flops": 2e9,
    "bytes": 3e6,
    "fraction_of_floor": 0.3,
    "fraction_of_peak_flops": 0.2,
    "launches": 123,
    "host_reads": 1,
}
SCORE = {"mean": 12.5, "mean_interval_95": [10.0, 15.25], "human_normalised": 0.94, "episodes": 100}
RUN = {
    "run": "Pong storm 0",
    "game": "Pong",
    "preset": "storm",
    "seed": 0,
    "status": "finished",
    "reason": "",
    "step": 100_000,
    "steps": 100_000,
    "training_seconds": 660.0,
    "ms_per_step": 6.31,
    "evaluation": SCORE,
    "evaluate_command": "stormfast evaluate runs/suite/x --episodes 100",
    "calls": [
        {"commit": "abc", "command": "stormfast train --game Pong"},
        {"commit": "abc", "command": "stormfast train --game Pong --resume"},
    ],
}
DOCUMENT = {
    "machine": {
        "device": "NVIDIA H200",
        "commit": "abc",
        "dirty": False,
        "torch": "2.11.0",
        "cuda": "13.0",
        "triton": "3.6.0",
        "python": "3.12.3",
        "driver": "580.1",
        "threads": 16,
        "clocks.sm": "345",
        "clocks.mem": "3201",
        "clocks.max.sm": "1980",
        "clocks.max.mem": "3201",
        "memory_free": 120_000_000_000,
        "memory_total": 150_000_000_000,
    },
    "begun": "2026-01-02",
    "stages": [
        {
            "stage": "tests",
            "status": "failed",
            "reason": "a | b\nfailed",
            "seconds": 61.2,
            "command": "python -m pytest",
            "date": "2026-01-02 03:04",
            "result": {"passed": 3, "failed": 1},
        },
        {
            "stage": "profile-storm",
            "status": "passed",
            "reason": "",
            "seconds": 40.0,
            "command": "stormfast profile",
            "date": "d",
            "result": PROFILE,
        },
        {
            "stage": "memory",
            "status": "passed",
            "reason": "",
            "seconds": 5.0,
            "command": "c",
            "date": "d",
            "result": {"presets": [MEMORY]},
        },
        {
            "stage": "phases",
            "status": "timed out",
            "reason": "slow",
            "seconds": 5.0,
            "command": "c",
            "date": "d",
            "result": {"records": [PHASE]},
        },
        {"stage": "kernels", "status": "left out", "reason": "no time", "command": "c", "date": "d"},
    ],
    "training": [RUN],
}


def test_every_number_is_in_its_table() -> None:
    text = table.markdown(copy.deepcopy(DOCUMENT))
    for line in (
        "# NVIDIA H200, commit abc, begun 2026-01-02",
        "NVIDIA H200: torch 2.11.0, cuda 13.0, triton 3.6.0, python 3.12.3, driver 580.1; 16 CPU threads. "
        "Clocks when it began: SM 345, memory 3201 MHz; at most: SM 1980, memory 3201 MHz. Memory free when it began: 120.0 of 150.0 GB. "
        "Others held the rest, and may have slowed down what is below.",
        "| tests | failed | 61 | a \\| b failed; 3 passed; 1 failed | 2026-01-02 03:04 | `python -m pytest` |",
        "| profile-storm | passed | 40 | 6 ms a step | d | `stormfast profile` |",
        "| memory | passed | 5 | fast 4.40 GB | d | `c` |",
        "| kernels | left out | - | no time | d | `c` |",
        "| storm | Pong, 1 x ale | graphs, bfloat16 | 6 | 5.9 - 6.25 | 45.6% | 2,153 | 1 | 10.0 | 4.60 |",
        "| fast | cuda bfloat16 | 4.40 | 3.90 | 4.10 |",
        "| act | storm | 1 (0.01) | 2 | 3 | 30.0% | 20.0% | 123 | 1 |",
        "| Pong | storm, 0 | finished | 100,000 of 100,000 | 11.0 | 6.31 | 12.50 (10.00 - 15.25) | 0.940 | 100 | abc |",
        "- `stormfast train --game Pong --resume`",
        "- `stormfast evaluate runs/suite/x --episodes 100`",
    ):
        assert line in text.splitlines(), line
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## A step as training runs it", "## Phases, each alone", "## Device memory", "## Training"]


def test_what_is_not_there_has_no_table() -> None:
    document = copy.deepcopy(DOCUMENT) | {
        "stages": [{"stage": "tests", "status": "waiting", "command": "c"}],
        "training": [],
    }
    document["machine"] = {name: document["machine"][name] for name in ("device", "commit", "torch", "threads")} | {
        "dirty": True
    }
    text = table.markdown(document)
    busy = DOCUMENT["machine"] | {"memory_free": 148_000_000_000}
    assert "Others" not in table.machine(busy)[0]
    assert "##" not in text and "Clocks" not in text and "Memory free" not in text
    assert "The working tree differed from the commit." in text
    assert "| tests | waiting | - |  |  | `c` |" in text.splitlines()


def test_a_run_under_way_has_no_score() -> None:
    run = RUN | {
        "status": "paused",
        "step": 0,
        "ms_per_step": None,
        "evaluation": None,
        "training_seconds": 0.0,
        "calls": [],
    }
    assert "| Pong | storm, 0 | paused | 0 of 100,000 | 0.0 | - | - | - | - |  |" in table.training([run]).splitlines()
    score = {"mean": 1, "mean_interval_95": [0, 2], "human_normalised": None, "episodes": 5}
    assert "| 1.00 (0.00 - 2.00) | - | 5 |" in table.training([RUN | {"evaluation": score}])
