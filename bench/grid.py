"""A Markdown table."""

import re
from collections.abc import Sequence


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in [header, ["---"] * len(header), *rows])


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.split()))
