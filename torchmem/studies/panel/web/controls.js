// Everything that can be moved, clicked or typed.
function choices(id, names, values) { $(id).replaceChildren(...names.map((n, k) => new Option(n, values ? values[k] : k))); }
const numeric = input => input.value === '' ? null : +input.value;
async function refilter() { await applyFilters(); if ($('extrema')) await extremes(); }
const listeners = {
  sample: v => go(+v, state.step), x: v => { state.x = +v; if ($('matrix')) matrix(); return show(); },
  y: v => { state.y = +v; if ($('matrix')) matrix(); return show(); },
  colour: v => { state.colour = v; return show(); }, scale: v => { state.scale = v; return show(); },
  e_direction: v => { state.direction = +v; return extremes(); }, e_step: v => { state.extremeStep = v; return extremes(); },
  d_what: v => { state.matrix = v; matrix(); }, d_lag: v => { state.lag = +v; matrix(); },
  i_place: v => { state.place = v; effects(); }, i_dose: v => { state.dose = +v; effects(); },
};
for (const name of ['source', 'action', 'reward', 'cluster', 'step'])
  listeners['f_' + name] = v => { state.filter[name] = v; return refilter(); };
listeners.blur = v => { state.blur = +v; return show(); };
for (const [id, act] of Object.entries(listeners)) if ($(id)) $(id).onchange = e => act(e.target.value);
for (const name of META.has.value ? ['low', 'high'] : []) $('f_' + name).oninput = e => { state.filter[name] = numeric(e.target); refilter(); };
$('time').oninput = e => { play(false); go(state.sample, +e.target.value); };
if ($('intensity')) $('intensity').oninput = e => { state.intensity = +e.target.value; show(); };
$('first').onclick = () => go(state.sample, 0);
$('last').onclick = () => go(state.sample, Infinity);
$('back').onclick = () => move(-1);
$('on').onclick = () => move(1);
$('play').onclick = () => play(!state.playing);
$('help').onclick = () => $('keys').open ? $('keys').close() : $('keys').showModal();
if ($('f_add')) $('f_add').onclick = () => { state.filter.ranges.push({what: 'score 0', low: null, high: null}); ranges(); };
$('f_reset').onclick = () => {
  state.filter = {source: 'any', action: 'any', reward: 'any', cluster: 'any', step: 'any', low: null, high: null, ranges: []};
  for (const name of ['source', 'action', 'reward', 'cluster', 'step']) if ($('f_' + name)) $('f_' + name).value = 'any';
  for (const id of ['f_low', 'f_high']) if ($(id)) $(id).value = '';
  ranges(); refilter();
};
function ranges() {
  if (!$('f_ranges')) return;
  const kinds = META.directions.names.map((n, k) => [n, `score ${k}`]);
  if (META.slopes) kinds.push(...META.directions.names.map((n, k) => [`gradient by ${n}`, `grad ${k}`]));
  $('f_ranges').replaceChildren(...state.filter.ranges.map((r, at) => {
    const line = document.createElement('div'), select = document.createElement('select'), gone = document.createElement('button');
    line.className = 'row';
    select.replaceChildren(...kinds.map(([n, v]) => new Option(n, v, false, v === r.what)));
    select.onchange = e => { r.what = e.target.value; refilter(); };
    line.append(select);
    for (const end of ['low', 'high']) {
      const input = document.createElement('input');
      input.type = 'number'; input.step = 'any'; input.placeholder = end === 'low' ? 'from' : 'to'; input.value = r[end] ?? '';
      input.oninput = e => { r[end] = numeric(e.target); refilter(); };
      line.append(input);
    }
    gone.textContent = 'remove'; gone.onclick = () => { state.filter.ranges.splice(at, 1); ranges(); refilter(); };
    line.append(gone);
    return line;
  }));
}
function scalarButtons() {
  const m = META.saliency || META.slopes, box = $('ways') || $('bar_note');
  if (!m || !$('ways')) return;
  const select = document.createElement('select');
  select.id = 'scalar'; select.title = 'what the gradient is of (s, S)';
  select.replaceChildren(...m.scalars.map((n, k) => new Option(n, k)));
  select.onchange = e => chooseScalar(+e.target.value);
  box.replaceChildren(select, ' ', ...m.ways.map(way => {
    const b = document.createElement('button');
    b.textContent = way; b.dataset.way = way; b.onclick = () => chooseWay(way);
    return b;
  }));
  chooseWay(state.way, true);
}
const redo = () => state.filter.ranges.some(r => r.what.startsWith('grad')) ? refilter() : show();
function chooseScalar(k) { state.scalar = k; $('scalar').value = k; return redo(); }
function chooseWay(way, quiet) {
  state.way = way;
  for (const b of $('ways').querySelectorAll('button')) b.setAttribute('aria-pressed', b.dataset.way === way);
  if (!quiet) redo();
}
function pressed(event, canvas) { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; }
for (const id of $('lines') ? ['value_plot', 'lines_plot'] : []) $(id).onclick = e => {
  const [x] = pressed(e, $(id)), [a, b] = span(), w = $(id).clientWidth;
  play(false); go(state.sample, Math.round(a + (b - a) * (x - BOX.l) / (w - BOX.l - BOX.r)));
};
if ($('scatter')) $('scatter').onclick = e => {
  const [x, y] = pressed(e, $('scatter'));
  let best = null, low = 400;
  for (const [px, py, i] of scatterPoints) { const d = (px - x) ** 2 + (py - y) ** 2; if (d < low) { low = d; best = i; } }
  if (best !== null) { play(false); go(OF[best], best - START[OF[best]]); }
};
if ($('matrix')) $('matrix').onclick = e => {
  const [x, y] = pressed(e, $('matrix')), n = META.dynamics.names.length, cell = ($('matrix').width - 24) / n, b = Math.floor((x - 24) / cell), a = Math.floor((y - 24) / cell);
  if (a >= 0 && b >= 0 && a < n && b < n) pickPair(a, b);
};
const cycle = (id, by) => { const s = $(id); if (!s) return; s.selectedIndex = (s.selectedIndex + by + s.length) % s.length; s.onchange({target: s}); };
const brighter = by => { const i = $('intensity'); if (!i) return; i.value = Math.max(0, Math.min(4, +i.value + by)); state.intensity = +i.value; show(); };
const KEYS = [
  ['←', 'ArrowLeft', 'step back', () => { play(false); move(-1); }], ['→', 'ArrowRight', 'step on', () => { play(false); move(1); }],
  ['Home', 'Home', 'first step', () => go(state.sample, 0)], ['End', 'End', 'last step', () => go(state.sample, Infinity)],
  ['j ↓', 'j ArrowDown', 'next sample', () => nextSample(1)], ['k ↑', 'k ArrowUp', 'sample before', () => nextSample(-1)],
  ['space', 'Space', 'play, pause', () => play(!state.playing)],
  ...($('ways') ? [['s S', 's', 'next, previous scalar', () => cycle('scalar', 1)], ['', 'S', '', () => cycle('scalar', -1)],
    ['w', 'w', 'next way: total, internal, external', () => { const m = META.saliency.ways; chooseWay(m[(m.indexOf(state.way) + 1) % m.length]); }],
    ['+ −', '+ =', 'saliency stronger, weaker', () => brighter(0.2)], ['', '-', '', () => brighter(-0.2)]] : []),
  ...($('scatter') ? [['x X', 'x', 'next, previous direction across', () => cycle('x', 1)], ['', 'X', '', () => cycle('x', -1)],
    ['y Y', 'y', 'next, previous direction upwards', () => cycle('y', 1)], ['', 'Y', '', () => cycle('y', -1)],
    ['c', 'c', 'next colour of the points', () => cycle('colour', 1)]] : []),
  ['r', 'r', 'reset the filters', () => $('f_reset').onclick()], ['?', '?', 'these keys', () => $('help').onclick()],
];
document.onkeydown = e => {
  if (e.ctrlKey || e.metaKey || e.altKey || ['INPUT', 'TEXTAREA'].includes(e.target.tagName) && e.target.type === 'number') return;
  const name = e.key === ' ' ? 'Space' : e.key, found = KEYS.find(([, keys]) => keys.split(' ').includes(name));
  if (!found || ($('keys').open && name !== '?')) return;
  e.preventDefault();
  found[3]();
};
async function begin() {
  document.documentElement.style.setProperty('--tall', TALL + 'px');
  $('title').textContent = META.title;
  for (const c of META.caveats) { const p = document.createElement('p'); p.className = 'caveat'; p.textContent = c; $('caveats').append(p); }
  $('origin').textContent = JSON.stringify(META.provenance, null, 1);
  $('key_list').innerHTML = KEYS.filter(k => k[0]).map(([k, , t]) => `<tr><td><kbd>${k}</kbd></td><td style="text-align:left">${t}</td></tr>`).join('');
  const most = Math.max(...META.samples.map(s => s.steps)), all = Array.from({length: most}, (_, t) => t);
  const sources = [...new Set(META.samples.map(s => s.source))];
  if (META.saliency) {  // where cells are few, a blur would only mix them
    const fine = Object.values(blob(META.samples.findIndex(s => s.source === 'simulated')).peek()).some(p => p.shape.length === 3 && p.shape[1] >= 16);
    if (!fine) { state.blur = 0; $('blur_label').remove(); }
  }
  if (sources.length > 1) choices('f_source', ['any', ...sources], ['any', ...sources]); else $('f_source_label').remove();
  choices('f_step', ['any', ...all], ['any', ...all]);
  if (META.actions) choices('f_action', ['any', ...META.actions], ['any', ...META.actions.keys()]); else $('f_action_label').remove();
  if (!META.has.value) for (const id of ['f_low_label', 'f_high_label']) $(id).remove();
  if (!META.has.reward) $('f_reward_label').remove();
  if ($('legend')) $('legend').innerHTML = META.lines.map((n, k) => `<span class=name style="display:inline"><b style="color:${setColour(k)}">━</b> ${n}</span>`).join('');
  if ($('f_cluster')) choices('f_cluster', ['any', ...META.clusters.names], ['any', ...META.clusters.names.keys()]);
  if ($('x')) {
    const names = META.directions.names;
    for (const id of ['x', 'y', 'e_direction']) choices(id, names);
    $('x').value = state.x; $('y').value = state.y;
    choices('e_step', ['any', ...all], ['any', ...all]);
    const kinds = [...['value', 'reward'].filter(n => META.has[n]), ...(META.actions ? ['action'] : []), ...(META.clusters ? ['cluster'] : []), ...(sources.length > 1 ? ['source'] : [])];
    choices('colour', kinds, kinds); state.colour = kinds[0];
  }
  if ($('edit_name')) $('edit_name').textContent = `edited: the same start, or world, under: ${META.edit}`;
  scalarButtons();
  if ($('matrix')) {
    const names = Object.keys(META.dynamics.matrices);
    choices('d_what', names, names); state.matrix = names[0];
    choices('d_lag', META.dynamics.matrices[names[0]].map((_, k) => k)); $('d_lag').value = state.lag;
    edges();
  }
  if ($('effects')) {
    const m = META.intervention, places = Object.keys(m.places);
    choices('i_place', places, places); state.place = places[0];
    choices('i_dose', m.doses); state.dose = m.doses.length - 1; $('i_dose').value = state.dose;
  }
  await openTable();
  await refilter();
  if ($('matrix')) matrix();
  if ($('effects')) effects();
  if ($('clusters')) await clusterList();
  addEventListener('resize', () => { show(); if ($('extrema')) extremes(); if ($('effects')) effects(); });
  document.body.dataset.ready = 1;
}
begin();
