"""Arguments, files and provenance of scripts. How a script ends: tests/test_cli.py."""

from pathlib import Path

import pytest

from bench import script
from stormfast.errors import UserError


def test_a_wrong_argument_is_a_user_error() -> None:
    with pytest.raises(UserError, match="--colour"):
        script.Parser("Prints.\n\nMore.").parse_args(["--colour"])


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/null"), tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(UserError, match=rf"^--json .*{path}"):
            script.check_writable("--json", path)
    with pytest.raises(UserError, match=r"\.json or \.json\.gz.*x\.gif"):
        script.check_writable("--json", Path("x.gif"), ".json", ".json.gz")
    with pytest.raises(UserError, match=r"rows\.json cannot be written"):
        script.written(tmp_path / "absent" / "rows.json", b"{}")
    script.check_writable("--json", tmp_path / "x.json", ".json")
    script.check_writable("--json", tmp_path / "missing" / "x.json", make=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "missing"]


def test_provenance_names_the_command() -> None:
    found = script.provenance("python -m bench.x", ["--preset", "two words"])
    assert found["command"] == "python -m bench.x --preset 'two words'"
    assert set(found) == {"commit", "dirty", "date", "command"}
