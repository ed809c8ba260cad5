// What is drawn for the sample and step that are shown.
const TALL = META.saliency && META.edit !== undefined ? 176 : 240, VIEWS = [];  // functions that draw; each knows its own canvas
let shown = 0, scatterPoints = [];
const here = {};  // arrays of the sample that is shown

async function load() {
  const b = blob(state.sample), name = `saliency.${state.way}.${state.scalar}`;
  for (const key of ['frames', 'shown', 'lines', 'edited.frames', 'edited.shown', 'edited.lines', 'edited.value', 'edited.reward',
    'edited.action', 'edited.score']) here[key] = await b.get(key);
  here.saliency = await b.get(name);
  here.slope = META.slopes ? await table.get(slopeName(state.way, state.scalar)) : null;
}
async function show() {
  const mine = ++shown;
  await load();
  if (mine !== shown) return;  // somebody went on meanwhile
  const s = META.samples[state.sample];
  $('time').max = s.steps - 1; $('time').value = state.step;
  $('now').textContent = `step ${state.step} of ${s.steps - 1}`;
  for (const view of VIEWS) view();
  document.body.dataset.shown = `${state.sample}:${state.step}`;
  document.body.dataset.draws = mine;
}
const actionName = a => a === undefined || a < 0 ? 'no action' : META.actions[a];
const words = (v, r, a) => [...(META.has.value ? [`value ${number(v)}`] : []), ...(META.has.reward ? [`reward ${number(r)}`] : []),
  ...(META.actions ? [actionName(a)] : [])].join(' · ');
if (!META.has.value && !META.has.reward && !META.lines.length) $('lines').remove();
VIEWS.push(function observation() {
  const i = row();
  if (here.frames) drawFrame($('frame'), here.frames, state.step, TALL);
  else { const n = here.shown.shape[1]; drawStrip($('frame'), here.shown.values, state.step * n, n, 1); }
  $('frame_note').textContent = words(T.value[i], T.reward[i], T.action && T.action[i]);
});
if ($('overlay')) VIEWS.push(function saliency() {
  const m = META.saliency, has = !!here.saliency;
  $('overlay_figure').hidden = !has;
  if (!has) return;
  let limit = m.scales[state.way][state.scalar];
  if (state.scale === 'one') limit = here.saliency.values.reduce((a, v) => Math.max(a, Math.abs(v) || 0), 0) || 1;
  const gain = state.intensity / limit;
  if (here.saliency.shape.length === 4) drawFrame($('overlay'), here.saliency, Math.min(state.step, here.saliency.shape[0] - 1), TALL);
  else if (here.frames) drawOverlay($('overlay'), here.frames, state.step, here.saliency, gain, state.blur, TALL);
  else { const n = here.saliency.shape[1], late = state.step >= here.saliency.shape[0];
    drawStrip($('overlay'), late ? new Float32Array(n) : here.saliency.values, late ? 0 : state.step * n, n, gain); }
  const when = state.step < m.at ? `${m.at - state.step} before` : state.step === m.at ? 'at its step' : 'after it: none';
  $('overlay_note').textContent = `${m.scalars[state.scalar]} at step ${m.at}, ${when}`;
});
if ($('edited')) VIEWS.push(function edited() {
  const frames = here['edited.frames'], vectors = here['edited.shown'], has = !!(frames || vectors);
  $('edited_figure').hidden = $('edit_name').hidden = !has;
  if (!has) return;
  const length = here['edited.value'].values.length, at = Math.min(state.step, length - 1);
  if (frames) drawFrame($('edited'), frames, at, TALL);
  else { const n = vectors.shape[1]; drawStrip($('edited'), vectors.values, at * n, n, 1); }
  const a = here['edited.action'];
  $('edited_note').textContent = (state.step >= length ? 'ended: ' : 'edited: ')
    + words(here['edited.value'].values[at], here['edited.reward'].values[at], a && a.values[at]);
});
const BOX = {l: 42, r: 8, t: 22, b: 20};
function stepTicks(n) { const by = Math.max(1, Math.ceil(n / 12)); return Array.from({length: Math.ceil(n / by)}, (_, k) => k * by); }
function line(g, X, Y, values, from, n, stride, colour, dash) {
  g.beginPath(); g.setLineDash(dash || []); g.strokeStyle = colour; g.lineWidth = 1.6;
  let open = false;
  for (let t = 0; t < n; t++) {
    const v = values[from + t * stride];
    if (!Number.isFinite(v)) { open = false; continue; }
    if (open) g.lineTo(X(t), Y(v)); else g.moveTo(X(t), Y(v));
    open = true;
  }
  g.stroke(); g.setLineDash([]);
}
function cursor(g, X, h) {
  g.strokeStyle = '#222'; g.lineWidth = 1; g.beginPath(); g.moveTo(X(state.step), BOX.t); g.lineTo(X(state.step), h - BOX.b); g.stroke();
  if (META.saliency && META.samples[state.sample].source === 'simulated') {
    g.fillStyle = '#009E73'; g.beginPath(); g.arc(X(META.saliency.at), h - BOX.b, 4, 0, 7); g.fill(); }
}
const span = () => [-0.5, Math.max(steps(), here['edited.value'] ? here['edited.value'].values.length : 0) - 0.5];
if ($('lines')) VIEWS.push(function traces() {
  const [g, w, h] = plot($('value_plot'), 150), n = steps(), from = START[state.sample], e = here['edited.value'];
  const values = [...T.value.subarray(from, from + n), ...T.reward.subarray(from, from + n), 0, ...(e ? e.values : [])];
  const [X, Y] = frameOf(g, w, h, BOX, span(), range(values), stepTicks(n));
  g.fillStyle = '#E69F00';
  for (let t = 0; t < n; t++) if (T.reward[from + t]) g.fillRect(X(t) - 2, Math.min(Y(0), Y(T.reward[from + t])), 4, Math.abs(Y(T.reward[from + t]) - Y(0)) + 1);
  line(g, X, Y, T.value, from, n, 1, '#0072B2');
  if (e) line(g, X, Y, e.values, 0, e.values.length, 1, '#0072B2', [4, 3]);
  cursor(g, X, h);
  g.fillStyle = '#0072B2'; g.fillText('value', BOX.l + 4, 13); g.fillStyle = '#b87f00'; g.fillText('reward', BOX.l + 40, 13);
  if (e) { g.fillStyle = '#D55E00'; g.fillText('dashed: edited', BOX.l + 84, 13); }
});
if ($('lines')) VIEWS.push(function policy() {
  const p = here.lines, L = META.lines.length;
  if (!L) { $('lines_plot').hidden = true; return; }
  const [g, w, h] = plot($('lines_plot'), 170), n = steps(), e = here['edited.lines'];
  const all = [...p.values, ...(e ? e.values : [])], limits = range(all);
  if (META.actions) limits[0] = Math.max(limits[0], -12);
  const [X, Y] = frameOf(g, w, h, BOX, span(), limits, stepTicks(n));
  g.save(); g.beginPath(); g.rect(BOX.l, 0, w, h - BOX.b + 1); g.clip();
  for (let k = 0; k < L; k++) {
    line(g, X, Y, p.values, k, n, L, setColour(k));
    if (e) line(g, X, Y, e.values, k, e.shape[0], L, setColour(k), [4, 3]);
  }
  g.restore();
  cursor(g, X, h);
  g.fillStyle = '#666'; g.fillText(META.actions ? 'log-probability of each action' : 'mean of each action', BOX.l + 4, 13);
});
function rowColour(limits) {  // row -> colour, by what is chosen
  const c = state.colour;
  if (c === 'action') return i => setColour(T.action[i]);
  if (c === 'cluster') return i => setColour(T.cluster[i]);
  if (c === 'source') return i => META.samples[OF[i]].source === 'real' ? SET[0] : SET[1];
  const v = c === 'reward' ? T.reward : T.value, [low, high] = limits;
  return i => Number.isFinite(v[i]) ? viridis((v[i] - low) / (high - low || 1)) : '#bbb';
}
if ($('scatter')) VIEWS.push(function scatter() {
  const [g, w, h] = plot($('scatter'), 380), d = META.directions, box = {l: 42, r: 12, t: 20, b: 34}, a = state.x, b = state.y;
  const room = k => { const m = 0.35 * (d.high[k] - d.low[k] || 1); return [d.low[k] - m, d.high[k] + m]; };
  const xs = room(a), ys = room(b);
  const [X, Y] = frameOf(g, w, h, box, xs, ys);
  g.fillStyle = '#444'; g.fillText(`${d.names[a]} →`, w - 70, h - 4); g.fillText(`${d.names[b]} ↑`, 4, 12);
  const inside = (v, [low, high]) => Math.max(low, Math.min(high, v));
  if (T.base) { g.fillStyle = '#e0e0dc';
    for (let i = 0; i < T.base.shape[0]; i++) g.fillRect(X(inside(T.base.values[i * K + a], xs)) - 1, Y(inside(T.base.values[i * K + b], ys)) - 1, 2, 2); }
  const limits = range(state.colour === 'reward' ? T.reward : T.value, 0), colour = rowColour(limits);
  scatterPoints = [];
  const each = Math.max(1, Math.ceil(ROWS / 20000));
  for (let i = 0; i < ROWS; i += each) {
    const u = T.score[a][i], v = T.score[b][i];
    if (!Number.isFinite(u) || !Number.isFinite(v) || !rowPass[i]) continue;
    const out = u < xs[0] || u > xs[1] || v < ys[0] || v > ys[1], px = X(inside(u, xs)), py = Y(inside(v, ys));
    scatterPoints.push([px, py, i]);
    g.fillStyle = out ? '#aaa' : colour(i);
    g.beginPath(); g.arc(px, py, 2.2, 0, 7); g.fill();
  }
  const path = (get, n, style, dash) => {
    g.beginPath(); g.strokeStyle = style; g.lineWidth = 1.4; g.setLineDash(dash);
    for (let t = 0; t < n; t++) { const [u, v] = get(t); if (Number.isFinite(u)) g.lineTo(X(inside(u, xs)), Y(inside(v, ys))); }
    g.stroke(); g.setLineDash([]);
    const [u, v] = get(Math.min(state.step, n - 1));
    if (Number.isFinite(u)) { g.lineWidth = 2.2; g.beginPath(); g.arc(X(inside(u, xs)), Y(inside(v, ys)), 6, 0, 7); g.stroke(); }
  };
  const from = START[state.sample], e = here['edited.score'];
  path(t => [T.score[a][from + t], T.score[b][from + t]], steps(), '#000', []);
  if (e) path(t => [e.values[t * K + a], e.values[t * K + b]], e.shape[0], '#D55E00', [4, 3]);
  const key = $('key'), c = state.colour;
  const dot = (colour, text) => `<span class=name style="display:inline"><b style="color:${colour}">●</b> ${text}</span>`;
  if (c === 'action') key.innerHTML = META.actions.map((n, k) => dot(setColour(k), n)).join('');
  else if (c === 'cluster') key.innerHTML = META.clusters.names.map((n, k) => dot(setColour(k), n)).join('') + dot(setColour(-1), 'none');
  else if (c === 'source') key.innerHTML = dot(SET[0], 'real') + dot(SET[1], 'simulated');
  else key.innerHTML = [0, 0.5, 1].map(v => dot(viridis(v), number(limits[0] + v * (limits[1] - limits[0])))).join('');
  key.innerHTML += '<span class=name style="display:inline">black line: this sample'
    + (e ? ', dashed: edited' : '') + (T.base ? '; pale: the recording' : '') + '</span>';
});
if ($('bar_plot')) VIEWS.push(function bars() {
  const [g, w, h] = plot($('bar_plot'), 260), d = META.directions, i = row(), e = here['edited.score'];
  const top = 1.25 * Math.max(...d.high.map(Math.abs), ...d.low.map(Math.abs), 1e-9), box = {l: 42, r: 8, t: 8, b: 22};
  const [X, Y] = frameOf(g, w, h, box, [-0.6, K - 0.4], [-top, top], [...d.names.keys()].filter(k => K <= 32 || k % 4 === 0));
  const wide = Math.max(2, Math.min(26, (w - 60) / K * 0.7)), slope = here.slope, m = META.slopes;
  let limit = m ? m.limits[state.way][state.scalar] : 1, any = false;
  if (slope && state.scale === 'one') {
    limit = 0;
    for (let t = 0; t < steps() * K; t++) limit = Math.max(limit, Math.abs(slope.values[START[state.sample] * K + t]) || 0);
  }
  for (let k = 0; k < K; k++) {
    const v = T.score[k][i], at = slope ? slope.values[i * K + k] : NaN;
    if (!Number.isFinite(v)) continue;
    any ||= Number.isFinite(at);
    g.fillStyle = Number.isFinite(at) ? signed(at * state.intensity / (limit || 1)) : m ? '#ddd' : '#8fb3cf';
    const y = Y(Math.max(-top, Math.min(top, v)));
    g.fillRect(X(k) - wide / 2, Math.min(Y(0), y), wide, Math.abs(y - Y(0)));
    g.strokeStyle = '#777'; g.strokeRect(X(k) - wide / 2, Math.min(Y(0), y), wide, Math.abs(y - Y(0)));
    if (e && state.step < e.shape[0]) { g.strokeStyle = '#D55E00'; g.lineWidth = 2; const z = Y(e.values[state.step * K + k]);
      g.beginPath(); g.moveTo(X(k) - wide / 2 - 2, z); g.lineTo(X(k) + wide / 2 + 2, z); g.stroke(); g.lineWidth = 1; }
  }
  if ($('bar_note')) $('bar_note').textContent = any
    ? `blue: more of it raises ${m.scalars[state.scalar]} at step ${m.at} (${state.way}), red: lowers; full colour at ${number(limit / (state.intensity || 1))}`
    : 'no gradients of this sample: they are of the simulated ones';
});
