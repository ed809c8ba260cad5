"""Several results on one page that needs nothing beside itself: numbers, figures and where each came from. A leaf."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path

from torchmem.files import atomic_write
from torchmem.result import Result

WIDTH = 104  # letters of a line of numbers that the page shows at once
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}
pre{background:#f6f6f4;padding:.8rem;overflow-x:auto;font-size:.85rem}img{max-width:100%}
details{color:#666;font-size:.85rem}h2{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1rem}"""


def write_report(
    path: str | Path, title: str, results: Mapping[str, Result], intro: str = "", notes: Mapping[str, str] | None = None
) -> Path:
    """One HTML file with every result's summary, figure and provenance, in order. Returns its path.

    results: heading -> result. intro: plain text above them. notes: heading -> plain text between heading and numbers.
    Replaces the file at `path`, whole or not at all.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>",
        *_paragraphs(intro),
    ]
    for heading, result in results.items():
        picture = base64.b64encode(result.png()).decode()
        origin = json.dumps(result.provenance.to_json(), indent=1)
        parts += [
            f"<h2>{escape(heading)}</h2>",
            *_paragraphs((notes or {}).get(heading, "")),
            f"<pre>{escape(_folded(result.summary()))}</pre>",
            f"<img alt='{escape(heading, quote=True)}' src='data:image/png;base64,{picture}'>",
            f"<details><summary>where these numbers come from</summary><pre>{escape(origin)}</pre></details>",
        ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, ("\n".join(parts) + "\n").encode())
    return path


def _folded(text: str) -> str:
    """Long sentences over several lines; tables, whose cells are two spaces apart, as they are (they scroll)."""
    lines = [line if "  " in line.strip() else textwrap.fill(line, WIDTH, subsequent_indent="  ")
             for line in text.splitlines()]  # fmt: skip
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip()]
