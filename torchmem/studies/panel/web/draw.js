// Pixels, axes and colours.
const SET = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#8a5a2b', '#7f7fbf', '#999999',
  '#b30059', '#4d9900', '#00808a', '#c2a500', '#660066', '#336699'];
const setColour = i => i < 0 ? '#bbb' : SET[i % SET.length];
const viridis = v => {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const at = Math.max(0, Math.min(v * 4, 3.999)), i = Math.floor(at), t = at - i;
  return `rgb(${stops[i].map((c, k) => Math.round(c + t * (stops[i + 1][k] - c))).join()})`;
};
const signed = v => {  // red below, grey-white at, blue above zero
  const t = Math.max(-1, Math.min(1, v || 0)), end = t > 0 ? [20, 90, 200] : [210, 50, 30];
  return `rgb(${[235, 235, 235].map((c, k) => Math.round(c + Math.abs(t) * (end[k] - c))).join()})`;
};
const side = shape => Math.max(shape[1], shape[2]);
function picture(frames, step) {  // one frame on a canvas of its own size
  const [, h, w] = frames.shape, made = new OffscreenCanvas(w, h), g = made.getContext('2d'), image = g.createImageData(w, h);
  const from = step * h * w * 3;
  for (let i = 0; i < h * w; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = frames.values[from + 3 * i + c];
    image.data[4 * i + 3] = 255;
  }
  g.putImageData(image, 0, 0);
  return made;
}
function fit(canvas, frames, size) {  // `size` pixels on the longer side
  const zoom = size / side(frames.shape);
  canvas.width = Math.round(frames.shape[2] * zoom); canvas.height = Math.round(frames.shape[1] * zoom);
  const g = canvas.getContext('2d');
  g.imageSmoothingEnabled = false;
  return g;
}
function drawFrame(canvas, frames, step, size) {
  fit(canvas, frames, size).drawImage(picture(frames, step), 0, 0, canvas.width, canvas.height);
}
function blurred(values, h, w, sigma) {  // Gaussian, edges repeated
  if (!sigma) return values;
  const reach = Math.ceil(3 * sigma), weight = [];
  for (let d = -reach; d <= reach; d++) weight.push(Math.exp(-d * d / (2 * sigma * sigma)));
  const sum = weight.reduce((a, b) => a + b), clip = (v, n) => Math.max(0, Math.min(n - 1, v));
  const pass = (from, at) => from.map((_, i) => {
    const y = Math.floor(i / w), x = i % w;
    let total = 0;
    for (let d = -reach; d <= reach; d++) total += weight[d + reach] * from[at(y, x, d)];
    return total / sum;
  });
  return pass(pass(values, (y, x, d) => y * w + clip(x + d, w)), (y, x, d) => clip(y + d, h) * w + x);
}
function drawOverlay(canvas, frames, step, grad, gain, sigma, size) {  // blue raises the scalar, red lowers it
  const g = fit(canvas, frames, size), [, h, w] = grad.shape, made = new OffscreenCanvas(w, h), p = made.getContext('2d');
  const image = p.createImageData(w, h), none = step >= grad.shape[0];
  const values = none ? new Float32Array(h * w) : blurred(grad.values.slice(step * h * w, (step + 1) * h * w), h, w, sigma);
  g.filter = 'grayscale(1) brightness(0.4)';
  g.drawImage(picture(frames, step), 0, 0, canvas.width, canvas.height);
  g.filter = 'none';
  for (let i = 0; i < h * w; i++) {
    const v = values[i] * gain, t = Math.min(1, Math.abs(v) || 0);
    const colour = v > 0 ? [60, 140, 255] : [255, 80, 60];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = colour[c];
    image.data[4 * i + 3] = Math.round(255 * t);
  }
  p.putImageData(image, 0, 0);
  g.drawImage(made, 0, 0, canvas.width, canvas.height);
}
function drawStrip(canvas, values, from, count, gain) {  // numbers as cells, 24 in a line
  const line = Math.min(count, 24), cell = Math.max(6, Math.floor(240 / line)), rows = Math.ceil(count / line);
  canvas.width = line * cell; canvas.height = rows * cell;
  const g = canvas.getContext('2d');
  for (let i = 0; i < count; i++) {
    g.fillStyle = signed(values[from + i] * gain);
    g.fillRect(i % line * cell, Math.floor(i / line) * cell, cell - 1, cell - 1);
  }
}
function plot(canvas, height) {  // a canvas as wide as it is shown, sharp on any screen -> [context, width, height]
  const ratio = window.devicePixelRatio || 1, width = Math.max(200, canvas.clientWidth);
  canvas.style.height = height + 'px';
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const g = canvas.getContext('2d');
  g.scale(ratio, ratio);
  g.font = '11px system-ui';
  return [g, width, height];
}
function range(values, extra = 0.05) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * extra;
  return [low - pad, high + pad];
}
function round(low, high, most) {  // at most about so many round numbers from low to high
  const raw = (high - low) / most, ten = 10 ** Math.floor(Math.log10(raw)), by = [1, 2, 5, 10].find(m => m * ten >= raw) * ten, out = [];
  for (let v = Math.ceil(low / by - 1e-9) * by; v <= high + by * 1e-9; v += by) out.push(+v.toPrecision(6));
  return out;
}
function frameOf(g, w, h, box, [x0, x1], [y0, y1], ticks) {  // a light frame with numbers; returns the two scales
  const {l, r, t, b} = box, X = v => l + (w - l - r) * (v - x0) / (x1 - x0), Y = v => h - b - (h - t - b) * (v - y0) / (y1 - y0);
  g.strokeStyle = '#e4e4e0'; g.fillStyle = '#666'; g.lineWidth = 1;
  const ys = round(y0, y1, Math.max(2, (h - t - b) / 45)), digits = all => Math.abs(all[1] - all[0]) < 0.01
    ? Math.min(6, Math.ceil(-Math.log10(Math.abs(all[1] - all[0])))) : 0, more = digits(ys);
  for (const v of ys) {
    g.beginPath(); g.moveTo(l, Y(v)); g.lineTo(w - r, Y(v)); g.stroke();
    g.textAlign = 'right'; g.fillText(more && v ? v.toFixed(more) : number(v), l - 4, Y(v) + 4);
  }
  g.textAlign = 'center';
  for (const v of ticks || round(x0, x1, 6)) g.fillText(number(v), X(v), h - b + 14);
  g.textAlign = 'left';
  return [X, Y];
}
