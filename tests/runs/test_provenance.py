"""The commit that a result names is that of the code that ran."""

import subprocess
from pathlib import Path

import pytest

from stormfast.errors import UserError
from stormfast.runs import provenance


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder taken for the checkout."""
    monkeypatch.delenv(provenance.VARIABLE, raising=False)
    root = tmp_path / "tree"
    root.mkdir()
    monkeypatch.setattr(provenance, "ROOT", root)
    return root


def commit_all(root: Path) -> None:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for arguments in (
        ["init", "--quiet"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--allow-empty", "--message", "all"],
    ):
        subprocess.run(["git", *arguments], cwd=root, check=True)


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tree: Path) -> None:
    (tree / "code.py").write_text("1")
    commit_all(tree)
    head, dirty = provenance.commit()
    assert len(head) == 12 and dirty is False
    (tree / "bench" / "results").mkdir(parents=True)
    (tree / "bench" / "results" / "new.json").write_text("{}")
    assert provenance.commit() == (head, False)
    (tree / "code.py").write_text("2")
    assert provenance.commit() == (head, True)


def test_a_tree_inside_another_repository_does_not_take_its_commit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_all(tree.parent)
    assert provenance.commit() == ("unknown", None)
    monkeypatch.setenv(provenance.VARIABLE, "0123abc")
    assert provenance.commit() == ("0123abc", None)


@pytest.mark.parametrize("told", ["../../evil", "", "abc", "0123abc`x`", "0123abc-dirtier"])
def test_what_is_no_commit_is_refused(tree: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.VARIABLE, told)
    with pytest.raises(UserError, match="STORMFAST_COMMIT must be a commit"):
        provenance.commit()
    monkeypatch.setenv(provenance.VARIABLE, "0123abc-dirty")
    assert provenance.commit() == ("0123abc-dirty", None)


def test_without_git_and_a_word_it_is_unknown(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    assert provenance.commit() == ("unknown", None)
