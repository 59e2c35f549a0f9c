"""How fast is stormfast on this machine's CUDA GPU, does it work there, and what does it learn? All of it unattended, in two commands.

    bench/gpu_suite.sh                                    # within ten minutes: tests, step profiles, kernels, memory, phases
    bench/gpu_suite.sh --stages tests,profile             # some of it; rows of an earlier call on the same commit stay
    bench/gpu_suite.sh train --game Pong                  # 100,000 steps of preset storm, then 100 episodes
    bench/gpu_suite.sh train --game Pong --minutes 9      # as much of it as fits; exit status 3: call again to go on
    bench/gpu_suite.sh --device cpu                       # the same suite on a CPU, at sizes that show that it works
    bench/gpu_suite.sh --wheels FOLDER                    # with packages from a folder of wheels, where there is no network

Writes bench/results/DEVICE/suite-DATE-COMMIT.json and .md, a row as soon as a stage ends; logs lie beside them, in logs/. A stage that
fails or takes too long is a row with its reason, and the others go on; a stage that no longer fits, or that lacks a package, is left
out and says so. Training adds its row to the same files; the run itself is under runs/suite.

Exit status: 0; 1 where a stage failed; 2 for bad input, or where there is no such device; 3 where training is to go on; 128 + a signal
that stopped it. STORMFAST_COMMIT=... says the commit where the tree came without its git history.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # of this checkout, whatever is installed

try:
    from bench.suite import wheels
    from bench.suite.process import Signals
    from bench.suite.record import LOGS, only_one, open_record, writable_folder
    from bench.suite.run import Around, environment, log_line, run_stages
    from bench.suite.stages import choose, plan
    from bench.suite.training import Training, go_on
    from stormfast.errors import UserError
except ModuleNotFoundError as error:  # what torch needs is all that the suite itself needs
    print(
        f"gpu_suite: {sys.executable} must have torch and numpy, but: {error}; name another interpreter: PYTHON=...",
        file=sys.stderr,
    )
    sys.exit(2)

MINUTES = 10.0  # of the suite, unless told otherwise
PROBE_SECONDS = 120  # in which a machine says what it is
RUNS = ROOT / "runs" / "suite"


class Parser(argparse.ArgumentParser):
    """Every mistake is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_suite: {message}; see bench/gpu_suite.sh --help\n")


def minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"must be minutes above 0, as 9 or 2.5, got '{text}'")


def device(text: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", text):
        return text
    raise argparse.ArgumentTypeError(f"must be cuda, cuda:N (as cuda:1) or cpu, got '{text}'")


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, got '{text}'")

    return parse


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="cuda", help="cuda (default), cuda:N, or cpu")
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install its *.whl for the suite alone, without a network"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "bench" / "results",
        metavar="FOLDER",
        help="where results go; default bench/results",
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    looks = {
        "description": about,
        "epilog": more,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    if arguments and arguments[0] == "train":
        parser = Parser(prog="bench/gpu_suite.sh train", **looks)
        parser.add_argument("--game", required=True, help="one of `stormfast games`")
        parser.add_argument("--preset", default="storm", help="default storm")
        parser.add_argument("--seed", type=whole(0), default=0, help="default 0")
        parser.add_argument("--steps", type=whole(1), default=100_000, help="environment steps; default 100,000")
        parser.add_argument("--episodes", type=whole(1), default=100, help="to evaluate with; default 100")
        parser.add_argument(
            "--minutes", type=minutes, default=math.inf, help="stop, saved, within this time; default none"
        )
        parser.add_argument(
            "--run-dir",
            type=Path,
            help="default runs/suite/GAME-PRESET-seedN; what else is given goes to `stormfast train`",
        )
        add_common(parser)
        options, options.more = parser.parse_known_args(arguments[1:])
        return options
    parser = Parser(prog="bench/gpu_suite.sh", **looks)
    parser.add_argument("--minutes", type=minutes, default=MINUTES, help="for all of it; default 10")
    parser.add_argument("--stages", help="only these, as tests,profile-storm; default all")
    parser.add_argument("--game", help="to profile with; default Pong, or Catch where no emulator is installed")
    parser.add_argument("--steps", type=whole(1), help="environment steps to profile; default 200 on CUDA, 20 on a CPU")
    add_common(parser)
    return parser.parse_args(arguments)


def probe(device: str, around: dict[str, str]) -> dict[str, Any]:
    """What the machine says of itself, in a process that then ends. Raises: UserError where it has no such device, or lacks torch."""
    command = [sys.executable, str(ROOT / "bench" / "suite" / "machine.py"), device]
    try:
        done = subprocess.run(command, env=around, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"device {device} did not answer within {PROBE_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(lines[-1] if lines else f"{shlex.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def suite(options: argparse.Namespace, arguments: Sequence[str], started: float) -> int:
    """Raises: UserError."""
    site, given = packages(options)
    machine = probe(options.device, given)
    is_training = hasattr(options, "run_dir")
    try:
        stages = [] if is_training else choose(plan(options.device, options.steps, options.game), options.stages)
    except ValueError as error:
        raise UserError(str(error)) from None
    folder = writable_folder(options.results.resolve() / machine.pop("slug"))
    busy = f"another suite, or a stage that outlived one, runs on this device: it holds {folder / LOGS / 'lock'}; wait until it has ended"
    with (
        Signals() as signals,
        only_one(folder / LOGS / "lock", busy) as lock,
    ):  # two on one device would time each other
        record = open_record(folder, machine, fresh=not is_training and options.stages is None, site=site)
        record.document["command"] = shlex.join(["bench/gpu_suite.sh", *arguments])
        around = Around(given, signals, started + 60 * options.minutes, (lock,))
        if is_training:
            status = go_on(training(options), record, around)
        else:
            status = run_stages(stages, record, around)
    log_line(f"{record.path}\n{record.path.with_suffix('.md')}")
    return status


def packages(options: argparse.Namespace) -> tuple[Path | None, dict[str, str]]:
    """The folder of installed wheels, if any, and the environment of every stage. Raises: UserError."""
    given = environment(os.environ)
    if options.wheels is None:
        return None, given
    site = wheels.install(options.wheels.resolve(), RUNS)
    wheels.use(site)
    return site, wheels.sourced(options.wheels.resolve(), site, given)


def training(options: argparse.Namespace) -> Training:
    run_dir = (options.run_dir or RUNS / f"{options.game}-{options.preset}-seed{options.seed}").resolve()
    asked = (options.game, options.preset, options.seed, options.steps, options.episodes)
    return Training(*asked, run_dir, options.device, tuple(options.more))


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    try:
        return suite(options, given, started)
    except UserError as error:
        print(f"gpu_suite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it began, or after it ended: meanwhile signals are noted
        print("gpu_suite: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
