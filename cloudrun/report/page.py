"""The HTML file: styles, scripts and data inlined, under a policy that lets nothing else run, load or be sent."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

from cloudrun.core.marks import REPORT_MARK
from cloudrun.report.collecting import Data
from cloudrun.report.columns import document, text

STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = (
    "uPlot.iife.min.js",
    "data.js",
    "dom.js",
    "filter.js",
    "scales.js",
    "table.js",
    "progress.js",
    "scatter.js",
    "parallel.js",
    "timeline.js",
    "run.js",
    "main.js",
)


def render(data: Data) -> str:
    """The whole file, as text."""
    styles = [_asset(name) for name in STYLES]
    scripts = [_asset(name) for name in SCRIPTS]
    return Template(_asset("page.html")).substitute(
        mark=REPORT_MARK,
        policy=_policy(scripts, styles),
        title=html.escape(text(data.title)),
        styles="\n".join(f"<style>{style}</style>" for style in styles),
        data=_harmless(document(data)),
        licence=_asset("uPlot.LICENSE").strip(),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _asset(name: str) -> str:
    return (files("cloudrun.report") / "assets" / name).read_text("utf-8")


def _policy(scripts: list[str], styles: list[str]) -> str:
    """Only what is inlined here, by its hash; no request of any kind, no string that becomes code or markup."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _harmless(document: dict[str, Any]) -> str:
    """JSON in which nothing can end the element it stands in, nor begin a comment or another element."""
    plain = json.dumps(document, separators=(",", ":"), allow_nan=False)  # ASCII: no U+2028, no lone surrogate
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
