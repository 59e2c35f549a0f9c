"""Copies of a checkout: what cannot be copied is named, and what a worker is told."""

import os
from pathlib import Path

import pytest

from bench.comparing import trees
from stormfast.errors import UserError
from tests.bench.synthetic_checkout import make_checkout, write_work


def test_what_cannot_be_copied_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    os.mkfifo(tmp_path / "checkout" / "pipe")
    with pytest.raises(UserError, match=r"checkout/pipe cannot be copied to .* is a named pipe.*; remove it") as caught:
        trees.snapshot(tmp_path / "checkout", tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_a_worker_has_its_own_temporary_directory_and_not_the_users_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.runtime.cache_dir_utils  # noqa: F401  (sets the variable, once)

    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    told = trees.environment(tmp_path / "tree", "abc", tmp_path)
    assert told["TMPDIR"] == str(tmp_path) and "PYTEST_ADDOPTS" not in told
    assert not Path(told["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path)  # it outlives the comparison
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    assert trees.environment(tmp_path / "tree", "abc", tmp_path)["TORCHINDUCTOR_CACHE_DIR"] == "/kept"


def test_the_old_side_is_measured_by_the_benches_of_the_new(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / "bench" / "bench_new.py").touch()
    (checkout / "bench" / "results").mkdir()
    (checkout / "bench" / "bench_work.py").unlink()
    write_work(checkout, encode=0.5)
    copy = trees.snapshot(checkout, tmp_path / "copy")
    assert sorted(path.name for path in (copy / "bench").iterdir()) == ["bench_new.py", "comparing", "conftest.py"]
    assert not (copy / ".git").exists()
    with trees.worktree(checkout, trees.resolve(checkout, "HEAD"), tmp_path / "old", copy) as tree:
        assert sorted(path.name for path in (tree / "bench").iterdir()) == ["bench_new.py", "comparing", "conftest.py"]
        assert "spin(0.004)" in (tree / "stormfast" / "work.py").read_text()
        path = trees.environment(tree, "0123456789abcdef", tmp_path)["PYTHONPATH"].split(os.pathsep)
        assert path[:2] == [str(tree), str(tree / "kernels")]
    assert not (tmp_path / "old").exists() and len(trees.worktrees(checkout)) == 1


def test_a_ref_that_is_none(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with pytest.raises(UserError, match="must be a branch, tag or commit of this checkout, got 'nowhere'"):
        trees.resolve(checkout, "nowhere")
    with pytest.raises(UserError, match=r"got '--all'"):
        trees.resolve(checkout, "--all")
    with pytest.raises(UserError, match="not a git repository"):
        trees.resolve(tmp_path, "HEAD")
