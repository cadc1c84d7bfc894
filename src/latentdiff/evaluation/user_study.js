const byId = id => document.getElementById(id);
const study = JSON.parse(byId('study').textContent);
let index = -1, open = false, start = 0; const answers = [];
function figure(src, kind) {
  const box = document.createElement('figure'), img = new Image();
  box.className = kind; img.src = src; img.alt = kind; box.append(img);
  img.decode().then(() => { if (Math.max(img.naturalWidth, img.naturalHeight) <= 96) img.className = 'small'; });
  return box;
}
function enable(on) { open = on; byId('left').disabled = byId('right').disabled = !on; }
async function next() {
  index += 1; byId('bar').value = index; enable(false);
  if (index === study.pairs.length) return finish();
  const pair = study.pairs[index], box = byId('pair'), sides = pair.flip ? [pair.b, pair.a] : [pair.a, pair.b];
  const shown = [figure(sides[0], 'choice'), figure(sides[1], 'choice')];
  if (pair.context) shown.splice(1, 0, figure(pair.context, 'context'));
  box.className = ''; box.replaceChildren(...shown);
  await Promise.all([...box.querySelectorAll('img')].map(img => img.decode()));
  start = performance.now(); enable(true);
  const current = index;
  setTimeout(() => { if (index === current) box.className = 'hidden'; }, study.seconds * 1000);
}
function choose(right) {
  if (!open) return;
  const pair = study.pairs[index], a = right === pair.flip;
  answers.push({ name: pair.name, chosen: a ? 'a' : 'b', side: right ? 'right' : 'left',
    seconds: Math.round(performance.now() - start) / 1000 });
  next();
}
function wilson(k, n) {  // 95 % interval of a proportion
  const z = 1.959964, p = k / n, center = p + z * z / (2 * n);
  const half = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)), scale = 1 + z * z / n;
  return [(center - half) / scale, (center + half) / scale];
}
function result() {
  const k = answers.filter(x => x.chosen === 'a').length, n = answers.length, [low, high] = wilson(k, n);
  return { question: study.question, a: study.a, b: study.b, seconds: study.seconds, seed: study.seed,
    chosen_a: k, pairs: n, fraction: k / n, low, high, answers };
}
function finish() {
  const r = result(), percent = x => (100 * x).toFixed(0) + ' %';
  byId('ask').hidden = true; byId('done').hidden = false;
  byId('fraction').textContent = percent(r.fraction);
  byId('interval').textContent = r.chosen_a + ' of ' + r.pairs + ', 95 % interval ' + percent(r.low) + ' to ' +
    percent(r.high) + '. A is ' + study.a + ', B is ' + study.b + '.';
}
byId('go').onclick = () => { byId('start').hidden = true; byId('ask').hidden = false; next(); };
byId('left').onclick = () => choose(false);
byId('right').onclick = () => choose(true);
document.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') choose(false);
  if (event.key === 'ArrowRight') choose(true);
});
byId('save').onclick = () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result(), null, 1)], { type: 'application/json' }));
  link.download = 'answers.json'; link.click(); URL.revokeObjectURL(link.href);
};
