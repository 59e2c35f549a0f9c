"""The documents: examples run, commands parse, links and names lead somewhere, hooks find nothing in the code."""

import doctest
import importlib.util
import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import stormfast
from stormfast.arguments import parse
from stormfast.commands import COMMANDS
from stormfast.commands.train import read_config
from stormfast.envs import games
from stormfast.presets import PRESETS, PROTOCOLS
from stormfast.schema import flatten
from stormfast.settings import LaunchConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "dev/*.md", "bench/*.md", "kernels/*.md", "profiling/*.md")
    for path in ROOT.glob(pattern)
)  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_blocks(text: str, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(text) if kind == language]


def command_lines(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented, without comments."""
    fenced = "\n".join(code_blocks(text, "")).splitlines()
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [re.sub(r"\s{2,}#.*| # .*", "", line).strip() for line in fenced + indented]


documents = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def test_the_table_of_commands_is_that_of_the_program() -> None:
    rows = re.findall(r"^\| `stormfast (\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert dict(rows) == {name: what for name, (what, _) in COMMANDS.items()}


def test_presets_and_protocols_are_named() -> None:
    text = (ROOT / "docs" / "presets-and-protocols.md").read_text()
    assert [f"`{name}`" for name in (*PRESETS, *PROTOCOLS) if f"`{name}`" not in text] == []


def test_the_first_example_of_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is printed, but with a preset, a length and a number of episodes for tests."""
    train, evaluate = stormfast.train, stormfast.Run.evaluate
    small = {"acting.random_steps": 64, "logging.tensorboard": False}

    def train_little(game: str, *, preset: str, steps: int, settings: dict[str, object]) -> object:
        assert (preset, steps) == ("cpu", 20_000)
        return train(game, preset="tiny", steps=70, device="cpu", settings=small | settings)

    monkeypatch.chdir(tmp_path)

    def evaluate_little(run: stormfast.Run, *, episodes: int) -> object:
        assert episodes == 30
        return evaluate(run, episodes=3)

    monkeypatch.setattr(stormfast, "train", train_little)
    monkeypatch.setattr(stormfast.Run, "evaluate", evaluate_little)
    (code,) = code_blocks((ROOT / "README.md").read_text(), "python")
    exec(code, {})
    score, error = map(float, capsys.readouterr().out.split())
    assert -5 <= score <= 5
    assert 0 < error < 255


def test_the_examples_of_the_kernels_page_run() -> None:
    values: dict[str, object] = {}
    for code in code_blocks((ROOT / "docs" / "kernels.md").read_text(), "python"):
        exec(code, values)
    assert values["one_hot"].shape == (1024, 32, 32)  # type: ignore[attr-defined]
    assert values["logits"].grad is not None  # type: ignore[attr-defined]


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(games, "_registered", dict(games._registered))  # the page registers a game
    options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    failed, tried = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False, optionflags=options)
    assert tried > 20
    assert failed == 0


@documents
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@documents
def test_commands_are_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `stormfast ...` and `make train ...` of a code block; of those that resume, the arguments alone."""
    monkeypatch.chdir(ROOT)  # where examples/ is
    for line in command_lines(path.read_text()):
        words = shlex.split(line) if line.startswith(("stormfast ", "make train ")) else []
        if words[:1] == ["make"]:
            given = dict(word.split("=", 1) for word in words[2:])
            words = ["stormfast", "train", "--game", given["GAME"], *shlex.split(given.get("ARGS", ""))]
        if not words or "--help" in line:
            continue
        name, args = words[1], words[2:]
        assert name in COMMANDS, line
        if name == "train" and "--resume" not in args:
            read_config(args)
        elif name == "train":
            parse(LaunchConfig, args, "stormfast train")
        else:
            parse(import_module(f"stormfast.commands.{name}").Config, args, f"stormfast {name}")


@documents
def test_modules_and_settings_exist(path: Path) -> None:
    if path.name in ("CHANGELOG.md", "LOG.md"):  # they also name what is gone
        return
    text = path.read_text()
    results = re.compile(r"<!-- results: .*?<!-- end of results -->", re.DOTALL)  # commands of their commits
    current = results.sub("", text)
    for module in re.findall(r"python -m ((?:bench|profiling)(?:\.\w+)+)", current):
        if not module.endswith("NAME"):
            assert importlib.util.find_spec(module) is not None, module
    known = {name.replace("_", "-") for name in flatten(LaunchConfig())}
    for name in re.findall(
        r"--((?:env|atari|replay|world-model|imagination|agent|acting|logging)\.[\w.-]*\w)", current
    ):
        assert name in known or name.replace(".no-", ".") in known, name


@documents
def test_files_in_backticks_exist(path: Path) -> None:
    if path.name in ("CHANGELOG.md", "LOG.md"):
        return
    places = (ROOT, path.parent, ROOT / "stormfast")
    for name in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|sh|md|json|toml))`", path.read_text()):
        if not re.search("[A-Z]{4}|^path/", name):  # NAME, DEVICE, DATE stand for something
            assert any((place / name).exists() for place in places), name


@documents
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= targets


def test_each_table_of_results_has_one_place() -> None:
    found = [
        (name, name_of(path))
        for path in DOCUMENTS
        for name in re.findall(r"^<!-- results: (\S+) -->$", path.read_text(), re.MULTILINE)
    ]
    assert len(found) == len({name for name, _ in found}), found
    assert {("learning", "docs/results.md"), ("steps", "docs/speed.md"), ("launches", "docs/speed.md")} <= set(found)


def test_numbers_of_readme_are_those_of_the_tables() -> None:
    """What README quotes by hand of tables that are written from results."""
    tables = (ROOT / "docs" / "results.md").read_text() + (ROOT / "docs" / "speed.md").read_text()
    quoted = ("4.87 ± 0.093", "-3.87 ± 0.229", "1,557 ± 171", "476 ± 81.4", "12,002", "2,208")
    text = (ROOT / "README.md").read_text()
    assert [number for number in quoted if number not in tables or number not in text] == []
    assert re.search(r"\| loop \| 2,208 \| 1 \|", tables)


def hooks() -> list[tuple[str, Callable[[str], object], Callable[[str], object]]]:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    found = re.findall(r"- id: (\S+)\n +name: .*\n +language: pygrep\n +entry: '(.*)'\n +files: (\S+)\n", text)
    return [(name, re.compile(entry).search, re.compile(files).search) for name, entry, files in found]


@pytest.mark.parametrize(
    ("hook", "file", "line"),
    [
        ("no-pickle", "stormfast/replay.py", "import pickle"),
        ("no-pickle", "bench/jobs.py", "np.load(path, allow_pickle=True)"),
        ("no-unsafe-torch-load", "stormfast/runs/checkpoint.py", "torch.load(path)"),
        ("no-host-sync", "stormfast/learner.py", "    loss = total.item()"),
        ("no-host-sync", "stormfast/world_model/losses.py", "    return kl.cpu()"),
    ],
)
def test_hooks_find_what_they_are_for(hook: str, file: str, line: str) -> None:
    (_, entry, files) = next(found for found in hooks() if found[0] == hook)
    assert files(file)
    assert entry(line)


def test_hooks_find_nothing_today() -> None:
    assert len(hooks()) == 3
    sources = [(str(path.relative_to(ROOT)), path.read_text().splitlines()) for path in ROOT.glob("[bkpst]*/**/*.py")]
    hits = [
        (name, file, line)
        for name, entry, files in hooks()
        for file, lines in sources
        if files(file) and file != "tests/test_docs.py"
        for line in lines
        if entry(line)
    ]
    assert hits == []
