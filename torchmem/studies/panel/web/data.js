// What the page holds. meta is read at once, the table when the page opens, a sample's blob when it is shown.
const $ = id => document.getElementById(id);
const META = JSON.parse($('meta').textContent);
const KINDS = {u1: Uint8Array, i1: Int8Array, i2: Int16Array}, NONE = {i1: -128, i2: -32768};
const KEPT = 12;  // samples whose unpacked arrays are kept

async function unpack(p) {  // -> {values, shape}
  const bytes = Uint8Array.from(atob(p.data), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  const raw = new KINDS[p.kind](await new Response(stream).arrayBuffer());
  if (p.scale === undefined) return {values: raw, shape: p.shape};
  const out = new Float32Array(raw.length), none = NONE[p.kind];
  for (let i = 0; i < raw.length; i++) out[i] = raw[i] === none ? NaN : raw[i] * p.scale;
  return {values: out, shape: p.shape};
}
class Lazy {  // the packed arrays of one script element, each unpacked once, when asked for
  constructor(id) { this.id = id; this.packed = null; this.done = new Map(); }
  names() { this.packed ??= JSON.parse($(this.id).textContent); return Object.keys(this.packed); }
  peek() { this.names(); return this.packed; }
  has(name) { return this.names().includes(name); }
  get(name) {
    if (!this.has(name)) return Promise.resolve(null);
    if (!this.done.has(name)) this.done.set(name, unpack(this.packed[name]));
    return this.done.get(name);
  }
}
const table = new Lazy('table'), blobs = new Map();
function blob(i) {
  const found = blobs.get(i) || new Lazy('blob' + i);
  blobs.delete(i); blobs.set(i, found);  // the newest last
  if (blobs.size > KEPT) blobs.delete(blobs.keys().next().value);
  return found;
}
const COUNT = META.samples.length, START = [0];
for (const s of META.samples) START.push(START[START.length - 1] + s.steps);
const ROWS = START[COUNT], OF = new Int32Array(ROWS);  // the sample of each row
META.samples.forEach((s, i) => OF.fill(i, START[i], START[i + 1]));
const K = META.directions ? META.directions.names.length : 0;
const T = {};  // columns of the table, unpacked: value, reward, action, cluster, score[k], base
async function openTable() {
  for (const name of ['value', 'reward', 'action', 'cluster', 'base'])
    if (table.has(name)) T[name] = name === 'base' ? await table.get(name) : (await table.get(name)).values;
  T.value ??= new Float32Array(ROWS).fill(NaN);
  T.reward ??= new Float32Array(ROWS).fill(NaN);
  T.score = [];
  for (let k = 0; k < K; k++) T.score.push((await table.get('score.' + k)).values);
}
const slopeName = (way, scalar) => `grad.${way}.${scalar}`;
const number = v => v === null || v === undefined || Number.isNaN(v) ? '–' : Math.abs(v) >= 1e4 || (v !== 0 && Math.abs(v) < 1e-3)
  ? v.toExponential(1).replace('e+', 'e').replace('.0e', 'e') : String(+v.toPrecision(3));
