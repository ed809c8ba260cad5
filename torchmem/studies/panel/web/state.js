// Where one is, and which samples pass the filters.
const state = {
  sample: 0, step: 0, playing: false, x: 0, y: Math.min(1, Math.max(0, K - 1)), colour: META.has.value ? 'value' : META.actions ? 'action' : 'reward', scalar: 0,
  way: META.saliency ? META.saliency.ways[0] : META.slopes ? META.slopes.ways[0] : '', intensity: 1, blur: 1, scale: 'all',
  direction: 0, extremeStep: 'any', matrix: '', lag: 1, place: '', dose: 0,
  filter: {source: 'any', action: 'any', reward: 'any', cluster: 'any', step: 'any', low: null, high: null, ranges: []},
};
let passing = [], rowPass = new Uint8Array(ROWS);
const steps = () => META.samples[state.sample].steps;
const row = () => START[state.sample] + state.step;

async function applyFilters() {
  const f = state.filter, columns = [];
  for (const r of f.ranges) {
    const [kind, k] = r.what.split(' ');
    if (kind === 'score') columns.push(i => T.score[k][i]);
    else {
      const g = await table.get(slopeName(state.way, state.scalar));
      columns.push(i => g ? g.values[i * K + +k] : NaN);
    }
  }
  const within = (v, low, high) => (low === null || v >= low) && (high === null || v <= high);
  const seen = new Uint8Array(COUNT);
  for (let i = 0; i < ROWS; i++) {
    const s = META.samples[OF[i]], step = i - START[OF[i]], reward = T.reward[i];
    let ok = (f.source === 'any' || f.source === s.source) && (f.step === 'any' || +f.step === step)
      && (f.action === 'any' || T.action[i] === +f.action) && (f.cluster === 'any' || T.cluster[i] === +f.cluster)
      && (f.reward === 'any' || (f.reward === 'plus' ? reward > 1e-3 : f.reward === 'minus' ? reward < -1e-3 : Math.abs(reward) <= 1e-3));
    if (ok && (f.low !== null || f.high !== null)) ok = within(T.value[i], f.low, f.high);
    for (let r = 0; ok && r < columns.length; r++) {
      const {low, high} = f.ranges[r], v = columns[r](i);
      ok = low === null && high === null || within(v, low, high);
    }
    rowPass[i] = ok ? 1 : 0;
    if (ok) seen[OF[i]] = 1;
  }
  passing = META.samples.map((_, i) => i).filter(i => seen[i]);
  $('count').textContent = `${passing.length} of ${COUNT} samples`;
  const none = !passing.length;
  $('sample').replaceChildren(...(none ? [new Option('none passes', -1)] : passing.map(i => new Option(label(i), i))));
  $('sample').disabled = none;
  if (!none && !seen[state.sample]) await go(passing[0], 0); else { if (!none) $('sample').value = state.sample; await show(); }
}
function label(i) {
  const s = META.samples[i];
  const from = s.source === 'simulated' && s.origin[0] >= 0 ? `, from ${s.origin[0]}:${s.origin[1]}` : '';
  return `${s.name} (${s.steps} steps${from})`;
}
async function go(sample, step) {
  state.sample = sample;
  state.step = Math.max(0, Math.min(step, steps() - 1));
  if (passing.includes(sample)) $('sample').value = sample;
  await show();
}
const move = by => go(state.sample, state.step + by);
function nextSample(by) {
  if (!passing.length) return;
  const at = passing.indexOf(state.sample);
  return go(passing[((at < 0 ? 0 : at + by) + passing.length) % passing.length], state.step);
}
let timer = 0;
function play(on) {
  state.playing = on;
  clearTimeout(timer);
  $('play').setAttribute('aria-pressed', on);
  $('play').textContent = on ? 'pause' : 'play';
  if (!on) return;
  const end = state.step >= steps() - 1;
  timer = setTimeout(async () => { await go(state.sample, end ? 0 : state.step + 1); if (state.playing) play(true); }, end ? 1000 : 250);
}
