"""What cloudrun writes into a user's project, and how that is told from the user's own files."""

from __future__ import annotations

from pathlib import Path

REPORT_MARK = '<!doctype html>\n<html lang="en" data-generator="cloudrun report">'  # how a report begins
_REPORTS = (".html", ".htm")


def may_be_report(name: str) -> bool:
    """Whether it is worth a look: what `is_report` reads is a file."""
    return name.endswith(_REPORTS)


def is_report(path: str | Path) -> bool:
    """Whether `cloudrun report` wrote it, as far as anybody can tell."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - there may be thousands
            return file.read(len(REPORT_MARK)) == REPORT_MARK.encode()
    except OSError:
        return False
