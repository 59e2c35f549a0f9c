"""Two sides timed: what their rounds took, which rounds count, and what is refused."""

from collections import Counter
from pathlib import Path

import pytest

from bench.comparing import sides
from bench.comparing.sides import Side, Timing, rounds_of
from bench.comparing.turns import Session, Told, TurnsError
from stormfast.errors import UserError


def test_rounds_are_seconds_a_call_without_the_wait_for_a_core() -> None:
    benches = [
        {"fullname": "a", "extra_info": {"calls": 2}, "stats": {"data": [4.0, 6.0, 8.0]}},
        {"fullname": "b", "extra_info": {}, "stats": {"data": [3.0]}},
        {"fullname": "none", "extra_info": {}, "stats": {"data": []}},
    ]
    assert rounds_of({"benchmarks": benches}) == {"a": [2, 3, 4], "b": [3]}
    assert rounds_of({"benchmarks": benches}, {"a": [9, 9, 1, 0, 9]})["a"] == [1.5, 3, 0.04]  # the first two warmed up
    assert rounds_of({"benchmarks": benches}, {"a": [1]})["a"] == [2, 3, 4]


def test_only_rounds_that_ran_in_pairs_are_compared() -> None:
    paired, alone = Counter(ok=3, alone=3, odd=3), Counter(alone=1)
    session = Session([Told(), Told()], [0, 0], paired, alone)
    rounds = {
        "old": {"ok": [1, 1], "alone": [1, 1], "odd": [1], "free": [1]},
        "new": {"ok": [1, 1], "alone": [1, 1], "odd": [1, 1], "free": [1], "gone": [1]},
    }
    timing = Timing(failures={"old": {}, "new": {}})
    sides.drop_unmatched(rounds, session, timing)
    assert rounds == {"old": {"ok": [1, 1]}, "new": {"ok": [1, 1]}}
    assert timing.failures["new"] == {"alone": sides.NO_TURNS, "free": sides.NO_TURNS, "odd": "ran 1 and 2 rounds"}
    assert timing.failures["old"] == timing.failures["new"] | {"gone": "was skipped here, and ran on the other side"}


def test_a_side_that_timed_other_code_is_refused(tmp_path: Path) -> None:
    side = Side("old", tmp_path, "abc")
    sides.check_packages(side, Told(packages={"stormfast": str(tmp_path / "stormfast"), "stormfast_kernels": ""}))
    with pytest.raises(TurnsError, match=r"^old: timed stormfast of /elsewhere/stormfast instead of its own"):
        sides.check_packages(side, Told(packages={"stormfast": "/elsewhere/stormfast"}))


@pytest.mark.parametrize(
    ("status", "log", "error", "message"),
    [
        (4, "x\nERROR: Wrong expression\n", UserError, "old: pytest cannot run these benches: Wrong expression"),
        (
            4,
            "ImportError while loading conftest\nE   ModuleNotFoundError: no heap\n",
            UserError,
            "ModuleNotFoundError: no heap",
        ),
        (5, "", UserError, "no bench of old is so named"),
        (3, "INTERNALERROR> boom\n", TurnsError, "old: pytest ended with status 3: INTERNALERROR> boom"),
    ],
)
def test_what_pytest_refuses_is_one_line(
    tmp_path: Path, status: int, log: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "log").write_text(log)
    with pytest.raises(error, match=message) as caught:
        sides.check_status(Side("old", tmp_path, "abc"), status, tmp_path / "log")
    assert "\n" not in str(caught.value)
    sides.check_status(Side("old", tmp_path, "abc"), 1, tmp_path / "log")  # a bench failed: told by itself


def test_counts_are_taken_in_the_tree_of_the_side(tmp_path: Path) -> None:
    (tmp_path / "tree" / "bench").mkdir(parents=True)
    script = tmp_path / "tree" / "bench" / "counts.py"
    script.write_text(
        "import os, sys\nprint('kernels are left out: x', file=sys.stderr)\nprint('nothing', file=sys.stderr)\n"
    )
    side = Side("old", tmp_path / "tree", "abc")
    with pytest.raises(
        UserError, match=r"^old: bench/counts.py cannot count there: nothing; --no-counts leaves counts out$"
    ):
        sides.run_counts(side, tmp_path)
    with open(script, "a") as file:
        file.write("open(sys.argv[2], 'w').write(os.getcwd() + ' ' + os.environ['STORMFAST_COMMIT'])\n")
    result, said = sides.run_counts(side, tmp_path)
    assert result.read_text() == f"{tmp_path / 'tree'} abc"
    assert said == ["old: kernels are left out: x"]
