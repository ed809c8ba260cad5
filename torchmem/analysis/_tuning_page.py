"""The page on which units are picked in a scatter and seen as maps. Data are in it; it loads nothing."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._tuning_groups import GROUPS

if TYPE_CHECKING:
    from torchmem.analysis._tuning_result import TuningResult

COLOURS = ("#bbbbbb", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#444444")
UNVISITED = 255  # byte of a tile without a visit; rates are 0 to 254 of the unit's own range

STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:1rem;color:#222}
main{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1.5rem}
canvas{border:1px solid #ccc}select,input{font:inherit;margin-right:.6rem}pre{font-size:.8rem;margin:.3rem 0}
.caveat{color:#b33;font-weight:bold}#kinds label{margin-right:.8rem}svg text{font-size:11px}"""

SCRIPT = r"""
const D = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
let site, picked = 0, points = [];
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const shownKinds = () => new Set([...document.querySelectorAll('#kinds input:checked')].map(b => +b.value));
function options(select, names, chosen) {
  select.replaceChildren(...names.map(n => new Option(n, n, n === chosen, n === chosen)));
}
function colour(v) {  // purple, green, yellow
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const at = Math.min(v * 4, 3.999), i = Math.floor(at), t = at - i;
  return stops[i].map((c, k) => c + t * (stops[i + 1][k] - c));
}
function scatter() {
  const c = $('scatter'), g = c.getContext('2d'), s = D.sites[site], xs = s.scores[$('x').value],
    ys = s.scores[$('y').value], kinds = shownKinds();
  const ok = xs.map((x, i) => x !== null && ys[i] !== null && kinds.has(s.groups[i]) ? i : -1).filter(i => i >= 0);
  const span = v => { let a = Infinity, b = -Infinity;
    for (const i of ok) { a = Math.min(a, v[i]); b = Math.max(b, v[i]); }
    const p = (b - a || 1) * .05; return [a - p, b + p]; };
  const [x0, x1] = span(xs), [y0, y1] = span(ys), L = 50, B = 40, W = c.width, H = c.height;
  g.clearRect(0, 0, W, H); points = [];
  g.font = '12px system-ui'; g.fillStyle = '#555'; g.strokeStyle = '#ddd';
  for (let k = 0; k <= 4; k++) {
    const px = L + (W - L - 10) * k / 4, py = H - B - (H - B - 10) * k / 4;
    g.beginPath(); g.moveTo(px, 10); g.lineTo(px, H - B); g.moveTo(L, py); g.lineTo(W - 10, py); g.stroke();
    g.textAlign = k === 4 ? 'right' : 'center';
    g.fillText((x0 + (x1 - x0) * k / 4).toPrecision(2), k === 4 ? W - 4 : px, H - B + 16); g.textAlign = 'left';
    g.fillText((y0 + (y1 - y0) * k / 4).toPrecision(2), 6, py + 4);
  }
  g.fillText($('x').value, W / 2, H - 8); g.save(); g.translate(48, 22); g.fillText($('y').value, 0, 0); g.restore();
  for (const i of ok) {
    const px = L + (W - L - 10) * (xs[i] - x0) / (x1 - x0), py = H - B - (H - B - 10) * (ys[i] - y0) / (y1 - y0);
    points.push([px, py, i]); g.fillStyle = D.colours[s.groups[i]];
    g.beginPath(); g.arc(px, py, 3.5, 0, 7); g.fill();
    if (i === picked) { g.strokeStyle = '#000'; g.lineWidth = 2; g.beginPath(); g.arc(px, py, 7, 0, 7); g.stroke();
      g.lineWidth = 1; }
  }
  $('count').textContent = `${ok.length} of ${s.groups.length} units`;
}
function unit() {
  const s = D.sites[site], [W, H] = D.shape, c = $('map'), g = c.getContext('2d'), size = W * H;
  const scale = Math.max(1, Math.floor(Math.min(360 / W, 360 / H)));
  c.width = W * scale; c.height = H * scale;
  for (let x = 0; x < W; x++) for (let y = 0; y < H; y++) {
    const b = s.maps[picked * size + x * H + y];
    g.fillStyle = b === 255 ? (D.walls[x * H + y] ? '#777' : '#eee') : `rgb(${colour(b / 254).map(Math.round).join()})`;
    g.fillRect(x * scale, y * scale, scale, scale);
  }
  const [low, high] = s.range[picked];
  $('title').textContent = `${site}, unit ${picked}: ${D.kinds[s.groups[picked]]}`;
  $('range').textContent = `rate ${low} to ${high}`;
  $('numbers').textContent = Object.entries(s.scores).map(([n, v]) =>
    n.padEnd(14) + (v[picked] === null ? '-' : v[picked].toPrecision(3))).join('\n');
  const curve = s.curves[picked] || [], top = Math.max(...curve.map(v => v || 0), 1e-9);
  $('heading').innerHTML = curve.map((v, k) => `<rect x=90 y=${k * 16 + 2} width=${150 * (v || 0) / top} height=12
    fill=#0072B2></rect><text x=84 y=${k * 16 + 12} text-anchor=end>${D.headings[k]}</text>`).join('');
  $('heading').setAttribute('height', 16 * curve.length + 4);
  $('number').value = picked;
}
function pick(i) { const n = D.sites[site].groups.length; picked = ((i % n) + n) % n; scatter(); unit(); }
function choose(name) { site = name; pick(0); }
for (const s of Object.values(D.sites)) s.maps = bytes(s.maps);
D.walls = bytes(D.walls);
options($('site'), Object.keys(D.sites));
const names = Object.keys(Object.values(D.sites)[0].scores);
options($('x'), names, 'ev'); options($('y'), names, 'si');
$('kinds').innerHTML = D.kinds.map((k, i) =>
  `<label style="color:${D.colours[i]}"><input type=checkbox value=${i} checked>${k}</label>`).join('');
$('site').onchange = e => choose(e.target.value);
$('x').onchange = $('y').onchange = $('kinds').onchange = scatter;
$('number').onchange = e => pick(+e.target.value);
$('scatter').onclick = e => {
  const r = e.target.getBoundingClientRect(), x = e.clientX - r.left, y = e.clientY - r.top;
  let best = null, low = 400;
  for (const [px, py, i] of points) { const d = (px - x) ** 2 + (py - y) ** 2; if (d < low) { low = d; best = i; } }
  if (best !== null) pick(best);
};
document.onkeydown = e => { if (e.target.tagName === 'INPUT') return;
  if (e.key === 'ArrowRight') pick(picked + 1); if (e.key === 'ArrowLeft') pick(picked - 1); };
choose(Object.keys(D.sites)[0]);
"""


def page(result: TuningResult) -> str:
    """The whole page."""
    text = style.as_json({
        "shape": result.shape, "headings": result.headings, "kinds": GROUPS, "colours": COLOURS,
        "walls": _packed(result.walls.astype(np.uint8)), "sites": {site: _site(result, site) for site in result.sites},
    })  # fmt: skip
    data = json.dumps(json.loads(text), separators=(",", ":")).replace("</", "<\\/")
    caveats = "".join(f"<p class=caveat>{escape(one)}</p>" for one in result.provenance.caveats)
    origin = json.dumps(result.provenance.to_json(), indent=1)
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>Tuning to {escape(result.target)}</title>
<style>{STYLE}</style><h1>Tuning to {escape(result.target)}</h1>{caveats}
<p>Click a point, or use the arrow keys. {result.steps} steps, {result.episodes} episodes.</p>
<p>site <select id=site></select> x <select id=x></select> y <select id=y></select>
unit <input id=number type=number min=0 style="width:6rem"> <span id=count></span></p><p id=kinds></p>
<main><canvas id=scatter width=620 height=460></canvas><section><h2 id=title style="margin:0;font-size:1rem"></h2>
<canvas id=map></canvas><p id=range style="margin:0"></p><svg id=heading width=260></svg></section>
<pre id=numbers></pre></main>
<details><summary>Table and settings</summary><pre>{escape(result.summary())}</pre><pre>{escape(origin)}</pre></details>
<script id=data type=application/json>{data}</script><script>{SCRIPT}</script>
"""


def _site(result: TuningResult, site: str) -> dict[str, Any]:
    maps = result.maps[site].reshape(len(result.maps[site]), -1)
    with np.errstate(invalid="ignore"):
        low, high = np.nanmin(maps, 1), np.nanmax(maps, 1)
        share = (maps - low[:, None]) / np.where(high > low, high - low, 1)[:, None]
    packed = np.where(np.isfinite(maps), np.round(np.nan_to_num(share) * 254), UNVISITED).astype(np.uint8)

    def short(values: np.ndarray) -> list[float | None]:
        return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]

    return {
        "maps": _packed(packed), "range": [[float(f"{a:.3g}"), float(f"{b:.3g}")] for a, b in zip(low, high)],
        "curves": [short(curve) for curve in result.curves[site]], "groups": result.groups[site],
        "scores": {name: short(values) for name, values in result.scores[site].items()},
    }  # fmt: skip


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
