"""The page itself: data and program in one file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

PROGRAM = ("data.js", "state.js", "draw.js", "views.js", "lists.js", "controls.js")  # in this order


def html(meta: Mapping[str, Any], table: Mapping[str, Any], blobs: Sequence[Mapping[str, Any]]) -> bytes:
    """meta: read at once. table: columns over all steps of all samples. blobs: one per sample, read when shown."""
    web = resources.files("torchmem.studies.panel") / "web"
    program = "\n".join((web / name).read_text(encoding="utf-8") for name in PROGRAM)
    body = (web / "body.html").read_text(encoding="utf-8")
    for name in ("saliency", "slopes", "directions", "clusters", "edit", "dynamics", "intervention"):
        body = _without(body, name) if name not in meta else body
    data = [_script("meta", meta), _script("table", table), *(_script(f"blob{i}", one) for i, one in enumerate(blobs))]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(meta['title'])}</title><style>{(web / 'style.css').read_text(encoding='utf-8')}</style>",
        body, *data, f"<script>{program}</script>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts).encode()


def _without(body: str, name: str) -> str:
    """Cut what stands between <!--name and name-->: a view that has nothing to show is not there."""
    begin, end = f"<!--{name}-->", f"<!--/{name}-->"
    while begin in body:
        head, _, rest = body.partition(begin)
        body = head + rest.partition(end)[2]
    return body


def _script(name: str, data: Mapping[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = text.replace("<", "\\u003c")  # nothing in it can end the element
    return f"<script id={name} type=application/json>{text}</script>"
