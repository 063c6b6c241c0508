"""Prints the README's snippet of that name: `python tests/readme_command.py tests`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def snippet(name: str) -> str:
    """The code block that follows `<!-- snippet: name -->`."""
    found = re.search(rf"<!-- snippet: {name} -->\n```\w*\n(.*?)```", README.read_text(), re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no snippet {name!r}")
    return found[1].strip()


if __name__ == "__main__":
    print(snippet(sys.argv[1]))
