"""Would a slowdown be found, and is nothing found where nothing changed?

    python -m bench.check_detection --json bench/results/DEVICE/check_detection.json
    OMP_NUM_THREADS=1 python -m bench.check_detection --preset tiny -k "not compile and not env"

Plants a slowdown of 20 % in the world-model update of one of two copies of the working tree: after the update it spins
for a fifth of the processor time that it took. Comparing must find the bench of that update slower, and no other; a
whole step contains the update and may be found or not. Then the unchanged copies are compared three times, and nothing
may be found. The exit status is 0 only if all of that held. It runs on a CPU, which may do other work.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import compare
from bench.checkouts import add_checkout, commit_of_working_tree, temporary_directory
from bench.compare import SIDES, Comparison
from bench.devices import device_name
from bench.launches import Selection
from bench.script import ROOT, status_of
from stormfast.device import resolve_device
from stormfast.runs.progress import log_line

UNCHANGED = 3  # comparisons
SPIN = """

def _slowed(method):
    import time

    def call(*args, **kwargs):
        started = time.thread_time()
        result = method(*args, **kwargs)
        end = started + {factor} * (time.thread_time() - started)
        while time.thread_time() < end:
            pass
        return result

    return call


{target} = _slowed({target})
"""


@dataclass(frozen=True)
class Slowdown:
    """Of processor time.

    Attributes:
        file: what it is appended to; target: the function or method there.
        expected, allowed: parts of the names of benches that must be found, and of those that may be.
    """

    file: str = "stormfast/learner.py"
    target: str = "Learner.update_world_model"
    factor: float = 1.20
    expected: str = "bench_phases.py::test_world_model"
    allowed: str = "bench_phases.py::test_step"

    def source(self) -> str:
        return SPIN.format(factor=self.factor, target=self.target)


def problems(comparison: Comparison, planted: Slowdown | None) -> list[str]:
    """What a comparison missed, and what it found without a reason; a line each."""
    slower, lines = comparison.having("slower"), []
    if planted and not any(planted.expected in name for name in slower):
        lines.append(f"{planted.expected} was not found slower")
    known = (planted.expected, planted.allowed) if planted else ()
    lines += [f"{name} was found slower" for name in slower if not any(part in name for part in known)]
    lines += [f"{name} failed: {error}" for name, error in comparison.failures(1).items()]
    return lines if comparison.seconds() else [*lines, "no bench could be compared"]


def run_trials(
    root: Path, slowdown: Slowdown, unchanged: int, selection: Selection, limit: float
) -> dict[str, tuple[Comparison, list[str]]]:
    """The slowdown, then unchanged copies. Returns: name -> comparison and its problems. Raises: UserError."""
    trials = {}
    with temporary_directory(root) as temporary:
        commit = commit_of_working_tree(root, temporary)
        trees = [add_checkout(root, commit, temporary / side) for side in SIDES]
        original = (trees[1] / slowdown.file).read_text()
        for i in range(1 + unchanged):
            name, planted = (f"unchanged {i}", None) if i else (f"{slowdown.factor:g} times planted", slowdown)
            log_line(f"{name}: comparison {i + 1} of {1 + unchanged}")
            (trees[1] / slowdown.file).write_text(original + (planted.source() if planted else ""))
            comparison = Comparison("a copy", limit)
            compare.compare_checkouts(comparison, trees, selection, temporary)
            log_line(compare.show(comparison))
            trials[name] = (comparison, problems(comparison, planted))
    return trials


def run(words: Sequence[str]) -> int:
    given = compare.parser_of(__doc__).parse_args(words)
    selection, slowdown = compare.selection_of(given), Slowdown()
    trials = run_trials(ROOT, slowdown, UNCHANGED, selection, given.limit)
    passed = not any(why for _, why in trials.values())
    comparisons = [{"name": name, "problems": why, **compare.as_json(each)} for name, (each, why) in trials.items()]
    result = {"planted": asdict(slowdown), "passed": passed, "comparisons": comparisons}
    compare.save(given.json, "bench.check_detection", words, device_name(resolve_device(given.device)), result)
    print(*[f"{name}: {'; '.join(why) or 'passed'}" for name, (_, why) in trials.items()], sep="\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(status_of("check_detection", lambda: run(sys.argv[1:])))
