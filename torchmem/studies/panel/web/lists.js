// Lists to go somewhere from: extremes, clusters, edges, effects.
async function thumb(i, step, text) {
  const button = document.createElement('button'), frames = await blob(i).get('frames');
  button.title = `${META.samples[i].name}, step ${step}`;
  button.dataset.to = `${i}:${step}`;
  if (frames) { const c = document.createElement('canvas'); c.className = 'sharp'; drawFrame(c, frames, step, 48); button.append(c); }
  button.append(text);
  button.onclick = () => { play(false); go(i, step); };
  return button;
}
let listing = 0;
async function extremes() {
  const mine = ++listing, v = T.score[state.direction], at = state.extremeStep, found = [];
  const counts = r => rowPass[r] && Number.isFinite(v[r]) && (at === 'any' || r - START[OF[r]] === +at);
  const all = v.filter((_, r) => counts(r)).sort(), median = all[all.length >> 1];
  for (const i of passing) {
    let high = -1, middle = -1, low = -1;
    for (let r = START[i]; r < START[i + 1]; r++) {
      if (!counts(r)) continue;
      if (high < 0 || v[r] > v[high]) high = r;
      if (low < 0 || v[r] < v[low]) low = r;
      if (middle < 0 || Math.abs(v[r] - median) < Math.abs(v[middle] - median)) middle = r;
    }
    if (high >= 0) found.push({high, middle, low});
  }
  const lists = {
    e_high: [...found].sort((a, b) => v[b.high] - v[a.high]).map(f => f.high),
    e_middle: [...found].sort((a, b) => Math.abs(v[a.middle] - median) - Math.abs(v[b.middle] - median)).map(f => f.middle),
    e_low: [...found].sort((a, b) => v[a.low] - v[b.low]).map(f => f.low),
  };
  for (const [id, rows] of Object.entries(lists)) {
    const made = [];
    for (const r of rows.slice(0, 6)) made.push(await thumb(OF[r], r - START[OF[r]], ` ${number(v[r])}`));
    if (mine !== listing) return;
    $(id).replaceChildren(...made);
  }
  const [g, w, h] = plot($('histogram'), 90), limits = range(all), bins = new Array(60).fill(0);
  for (const x of all) bins[Math.min(59, Math.floor((x - limits[0]) / (limits[1] - limits[0]) * 60))]++;
  const box = {l: 42, r: 8, t: 4, b: 18};
  const [X, Y] = frameOf(g, w, h, box, limits, [0, Math.max(...bins, 1)]), wide = (w - 50) / 60;
  g.fillStyle = '#8fb3cf';
  bins.forEach((n, k) => g.fillRect(X(limits[0] + (limits[1] - limits[0]) * k / 60), Y(n), wide, Y(0) - Y(n)));
}
async function clusterList() {
  const m = META.clusters, made = [];
  for (let k = 0; k < m.names.length; k++) {
    const name = document.createElement('button'), row = document.createElement('div');
    name.textContent = `cluster ${m.names[k]}`; name.style.borderColor = setColour(k); name.dataset.cluster = k;
    name.onclick = () => { state.filter.cluster = $('f_cluster').value = state.filter.cluster === String(k) ? 'any' : String(k); refilter(); };
    row.className = 'thumbs'; row.append(name);
    for (const [i, step] of m.exemplars[k].slice(0, 6)) row.append(await thumb(i, step, ''));
    made.push(row);
  }
  $('c_list').replaceChildren(...made);
  $('c_summary').textContent = m.summary;
}
function matrix() {
  const m = META.dynamics, values = m.matrices[state.matrix][state.lag], n = m.names.length, cell = Math.max(8, Math.min(26, Math.floor(400 / n)));
  const canvas = $('matrix'), g = canvas.getContext('2d'), top = Math.max(...m.matrices[state.matrix].slice(1).flat(2).map(v => Math.abs(v || 0)), 1e-9);
  canvas.width = canvas.height = n * cell + 24;
  g.font = '10px system-ui'; g.fillStyle = '#666';
  for (let k = 0; k < n; k++) { g.fillText(k, 2, 24 + k * cell + cell / 2 + 3); g.fillText(k, 24 + k * cell + cell / 2 - 4, 14); }
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
    g.fillStyle = signed(values[a][b] / top); g.fillRect(24 + b * cell, 24 + a * cell, cell - 1, cell - 1);
    if (a === state.x && b === state.y) { g.strokeStyle = '#000'; g.strokeRect(24.5 + b * cell, 24.5 + a * cell, cell - 2, cell - 2); }
  }
  $('d_note').textContent = `${m.names[state.x] ?? ''} → ${m.names[state.y] ?? ''}: ${number((values[state.x] || [])[state.y])} (full colour ${number(top)})`;
}
function pickPair(a, b) {
  state.x = a; state.y = b;
  if ($('x')) { $('x').value = a; $('y').value = b; }
  matrix(); show();
}
function edges() {
  const m = META.dynamics, head = ['from → to', 'lag', 'way', 'slope', 'regression', 'p', ''];
  const rows = m.edges.map(([way, lag, a, b, j, r, p, stands]) => {
    const tr = document.createElement('tr');
    tr.className = 'pick';
    tr.innerHTML = [`${m.names[a]} → ${m.names[b]}`, lag, way, number(j), number(r), number(p), stands ? 'stands' : ''].map(t => `<td>${t}</td>`).join('');
    tr.onclick = () => { state.lag = lag; $('d_lag').value = lag; pickPair(a, b); };
    return tr;
  });
  const first = document.createElement('tr');
  first.innerHTML = head.map(t => `<th>${t}</th>`).join('');
  $('d_edges').replaceChildren(first, ...rows);
}
function effects() {
  const m = META.intervention, p = m.places[state.place], d = state.dose, n = m.outcomes.length, [g, w, h] = plot($('effects'), 26 * n + 30);
  const values = [0, ...p.low.flat(), ...p.high.flat(), ...p.control.flat()], box = {l: 96, r: 10, t: 4, b: 20}, [x0, x1] = range(values);
  const X = v => box.l + (w - box.l - box.r) * (v - x0) / (x1 - x0), Y = k => box.t + 26 * k + 13;
  g.strokeStyle = '#ccc'; g.beginPath(); g.moveTo(X(0), 0); g.lineTo(X(0), h - box.b); g.stroke();
  g.textAlign = 'center'; g.fillStyle = '#666';
  for (const v of round(x0, x1, 6)) g.fillText(number(v), X(v), h - 4);
  m.outcomes.forEach((name, k) => {
    g.textAlign = 'right'; g.fillStyle = '#222'; g.fillText(name, box.l - 6, Y(k) + 4);
    g.fillStyle = '#bbb';
    for (const c of p.control) g.fillRect(X(c[k]) - 1, Y(k) - 8, 2, 16);
    g.strokeStyle = g.fillStyle = '#0072B2'; g.lineWidth = 2;
    g.beginPath(); g.moveTo(X(p.low[d][k]), Y(k)); g.lineTo(X(p.high[d][k]), Y(k)); g.stroke();
    g.beginPath(); g.arc(X(p.effect[d][k]), Y(k), 4, 0, 7); g.fill();
  });
  $('i_summary').textContent = `blue: the edit (${m.changes}), 95 % over starts; grey: random directions\n` + m.summary;
}
