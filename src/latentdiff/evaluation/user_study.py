"""The user study of the paper: which of two images, each shown for three seconds (Rombach et al. 2022, app. E.3.6).

python -m latentdiff.evaluation.user_study A B --output page.html    two folders, paired by file name, else by order
python -m latentdiff.evaluation.user_study --read ANSWERS.json ...   results of one or several participants

--context DIR      images shown between the two, such as their low-resolution or masked inputs
--question TEXT    the question to participants (default: Which image looks more real?)
--count N          largest number of pairs (default 50), evenly spaced over the folders
--seconds S        how long a pair is shown (default 3)
--seed N           decides the order of the pairs, and which side A is on (default 0)

The page is one file, which stores and sends nothing: at the end, the participant saves the answers to a file. For task
1 of the paper (how often A is preferred to real images), B is a folder of real images; for task 2, another model.
"""

import json
from pathlib import Path

from latentdiff import cli, rng
from latentdiff.cli import ArgumentParser
from latentdiff.config import UserError
from latentdiff.data.image import BadImage, open_image
from latentdiff.data.shapes.reader import wilson
from latentdiff.evaluation import html

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp"}

STYLE = """<style>
#stage { text-align: center; } #pair { display: flex; gap: 1rem; justify-content: center; margin: 1rem 0; }
#pair figure { flex: 0 1 340px; position: relative; } #pair .context { flex-basis: 170px; align-self: center; }
#pair img { image-rendering: auto; aspect-ratio: 1; object-fit: contain; }
#pair img.small { image-rendering: pixelated; }
#pair.hidden .choice img { visibility: hidden; } #pair .choice { background: var(--line); border-radius: 6px; }
button { font: inherit; font-weight: 600; color: #fff; background: var(--accent); border: 0; border-radius: 10px;
  padding: .7rem 1.4rem; min-width: 8rem; min-height: 44px; cursor: pointer; margin: .25rem; }
button:disabled { opacity: .35; cursor: default; } progress { width: 100%; accent-color: var(--accent); }
#left { background: var(--accent); } #done b { font-size: 2rem; } [hidden] { display: none !important; }
@media (max-width: 600px) { #pair { gap: .4rem; } button { min-width: 0; flex: 1; } .row { display: flex; } }
</style>"""

BODY = """<h1>{question}</h1>
<p class="soft">{count} pairs, each shown for {seconds:g} seconds. Choose with the buttons or the arrow keys.</p>
<section id="stage">
<div id="start"><p>The images disappear; answer from what you saw.</p><button id="go">Start</button></div>
<div id="ask" hidden><progress id="bar" max="{count}" value="0"></progress>
<div id="pair"></div><div class="row"><button id="left">left</button><button id="right">right</button></div></div>
<div id="done" hidden><p>A was chosen in <b id="fraction"></b> of the pairs.</p><p class="soft" id="interval"></p>
<button id="save">Save the answers</button></div>
</section>"""

SCRIPT = """
const study = {study};
const byId = id => document.getElementById(id);
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
"""


def pair_files(a: Path, b: Path, count: int, context: Path | None = None) -> list[tuple[str, ...]]:
    """Files (a, b[, context]) of the same name or, if no names agree, of the same position; at most `count`."""
    folders = [_image_files(folder) for folder in (a, b, *([context] if context else []))]
    shared = sorted(set.intersection(*(set(files) for files in folders)))
    if shared:
        pairs = [tuple(str(files[name]) for files in folders) for name in shared]
    else:
        pairs = [tuple(map(str, paths)) for paths in zip(*(files.values() for files in folders))]
    n = min(count, len(pairs))
    return [pairs[i * len(pairs) // n] for i in range(n)]


def _image_files(folder: Path) -> dict[str, Path]:
    """Name without extension -> image file."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; a user study needs folders of images")
    files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in EXTENSIONS and p.stem != "grid"}
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(sorted(EXTENSIONS))})")
    return files


def build_page(
    pairs: list[tuple[str, ...]], names: tuple[str, str], question: str, seconds: float, seed: int
) -> str:  # fmt: skip
    """The HTML page of the pairs of `pair_files`; names: of A and B, shown at the end."""
    shown = []
    for i in (rng.permute(i, len(pairs), rng.key(seed, "order")) for i in range(len(pairs))):
        images = dict(zip(("a", "b", "context"), map(_data_uri, pairs[i])))
        shown.append({"name": Path(pairs[i][0]).stem, "flip": rng.key(seed, "flip", i) % 2 == 1} | images)
    study = {"question": question, "seconds": seconds, "seed": seed, "a": names[0], "b": names[1], "pairs": shown}
    body = STYLE + BODY.format(question=html.escape(question), count=len(pairs), seconds=seconds)
    return html.page(question, body, SCRIPT.replace("{study}", json.dumps(study).replace("</", "<\\/")))


def _data_uri(path: str) -> str:
    try:
        return html.data_uri(open_image(path))
    except BadImage as error:
        raise UserError(f"{path} {error}") from None


def read_answers(paths: list[str]) -> dict:
    """The answers of all files together: the fraction that chose A, with its 95 % interval (Wilson)."""
    try:
        results = [json.loads(Path(path).read_text()) for path in paths]
        chosen_a = sum(answer["chosen"] == "a" for result in results for answer in result["answers"])
        n = sum(len(result["answers"]) for result in results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--read {' '.join(paths)}: these are not answers of a user study ({error})") from error
    if not n:
        raise UserError(f"--read {' '.join(paths)}: there are no answers in it")
    low, high = wilson(chosen_a, n)
    return {"people": len(results), "answers": n, "chosen_a": chosen_a, "fraction": chosen_a / n, "low": low, "high": high}


def main(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    parser = ArgumentParser(add_help=False)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--output", default="study.html")
    parser.add_argument("--read", nargs="+")
    parser.add_argument("--context", type=Path)
    parser.add_argument("--question", default="Which image looks more real?")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.read:
        print(json.dumps(read_answers(options.read), indent=1))
        return
    if len(options.folders) != 2 or options.count < 1:
        raise UserError("a user study needs two folders of images, A and B, and a --count of at least 1")
    a, b = options.folders
    pairs = pair_files(Path(a), Path(b), options.count, options.context)
    Path(options.output).write_text(build_page(pairs, (a, b), options.question, options.seconds, options.seed))
    print(f"{len(pairs)} pairs: {options.output}")


if __name__ == "__main__":
    cli.run(main)
