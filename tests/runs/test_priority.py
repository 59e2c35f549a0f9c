"""The lowest priority: what is asked of the system, and given back."""

import os
from pathlib import Path

import pytest

from stormfast.runs import priority


@pytest.mark.parametrize("content", ["/autogroup-47 nice 5\n", "", None])
def test_the_session_gets_its_priority_back(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "autogroup", []
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(priority, "AUTOGROUP", file)
    monkeypatch.setattr(os, "nice", asked.append)
    with priority.lowest_priority():
        assert asked == [19]
        assert not content or file.read_text() == "19"
    assert not content or file.read_text() == "5"
    assert file.exists() == (content is not None)
