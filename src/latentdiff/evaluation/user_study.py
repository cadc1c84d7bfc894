"""A page for the paper's user study: which of two pictures, seen for three seconds (Rombach et al. 2022, app. E.3.6).

python -m latentdiff.metrics.study A B --output page.html      two folders; pictures are paired by name, else by order
python -m latentdiff.metrics.study --read ANSWERS.json ...     what one or several people answered

--context DIR      pictures shown between the two, such as the small or the masked ones that they were made from
--question TEXT    what is asked (default: Which picture looks more real?)
--count N          pairs at most (default 50), evenly taken     --seconds S   how long they are seen (default 3)
--seed N           order, and which side is which (default 0)

The page is one file. It keeps nothing and sends nothing: at its end the answers are saved to a file by the reader.
Put ground truth in B for task 1 of the paper (how often A is preferred to it), or another model for task 2.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.shapes.reader import wilson
from latentdiff.evaluation import html

KINDS = {".png", ".jpg", ".jpeg", ".webp"}

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
<div id="start"><p>The pictures disappear; answer from what you saw.</p><button id="go">Start</button></div>
<div id="ask" hidden><progress id="bar" max="{count}" value="0"></progress>
<div id="pair"></div><div class="row"><button id="left">left</button><button id="right">right</button></div></div>
<div id="done" hidden><p>A was chosen in <b id="share"></b> of the pairs.</p><p class="soft" id="interval"></p>
<button id="save">Save the answers</button></div>
</section>"""

SCRIPT = """
const study = {study};
const find = id => document.getElementById(id);
let place = -1, open = false, began = 0; const answers = [];
function figure(src, kind) {
  const box = document.createElement('figure'), img = new Image();
  box.className = kind; img.src = src; img.alt = kind; box.append(img);
  img.decode().then(() => { if (Math.max(img.naturalWidth, img.naturalHeight) <= 96) img.className = 'small'; });
  return box;
}
function ready(on) { open = on; find('left').disabled = find('right').disabled = !on; }
async function next() {
  place += 1; find('bar').value = place; ready(false);
  if (place === study.pairs.length) return finish();
  const pair = study.pairs[place], box = find('pair'), sides = pair.flip ? [pair.b, pair.a] : [pair.a, pair.b];
  const shown = [figure(sides[0], 'choice'), figure(sides[1], 'choice')];
  if (pair.context) shown.splice(1, 0, figure(pair.context, 'context'));
  box.className = ''; box.replaceChildren(...shown);
  await Promise.all([...box.querySelectorAll('img')].map(img => img.decode()));
  began = performance.now(); ready(true);
  const here = place;
  setTimeout(() => { if (place === here) box.className = 'hidden'; }, study.seconds * 1000);
}
function choose(right) {
  if (!open) return;
  const pair = study.pairs[place], a = right === pair.flip;
  answers.push({ name: pair.name, chosen: a ? 'a' : 'b', side: right ? 'right' : 'left',
    seconds: Math.round(performance.now() - began) / 1000 });
  next();
}
function wilson(k, n) {  // 95 % interval of a proportion
  const z = 1.959964, p = k / n, middle = p + z * z / (2 * n);
  const half = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)), whole = 1 + z * z / n;
  return [(middle - half) / whole, (middle + half) / whole];
}
function result() {
  const k = answers.filter(x => x.chosen === 'a').length, n = answers.length, [low, high] = wilson(k, n);
  return { question: study.question, a: study.a, b: study.b, seconds: study.seconds, seed: study.seed,
    chosen_a: k, pairs: n, share: k / n, low, high, answers };
}
function finish() {
  const r = result(), percent = x => (100 * x).toFixed(0) + ' %';
  find('ask').hidden = true; find('done').hidden = false;
  find('share').textContent = percent(r.share);
  find('interval').textContent = r.chosen_a + ' of ' + r.pairs + ', 95 % interval ' + percent(r.low) + ' to ' +
    percent(r.high) + '. A is ' + study.a + ', B is ' + study.b + '.';
}
find('go').onclick = () => { find('start').hidden = true; find('ask').hidden = false; next(); };
find('left').onclick = () => choose(false);
find('right').onclick = () => choose(true);
document.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') choose(false);
  if (event.key === 'ArrowRight') choose(true);
});
find('save').onclick = () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result(), null, 1)], { type: 'application/json' }));
  link.download = 'answers.json'; link.click(); URL.revokeObjectURL(link.href);
};
"""


def pairs(a: Path, b: Path, count: int, context: Path | None = None) -> list[tuple[str, ...]]:
    """Files (a, b[, context]) of the same name, or, where names differ, in the same place; evenly taken, `count`."""
    found = [_pictures(folder) for folder in (a, b, *([context] if context else []))]
    shared = sorted(set.intersection(*(set(files) for files in found)))
    if shared:
        rows = [tuple(str(files[name]) for files in found) for name in shared]
    else:
        rows = [tuple(map(str, row)) for row in zip(*(files.values() for files in found))]
    n = min(count, len(rows))
    return [rows[i * len(rows) // n] for i in range(n)]


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of pictures")
    files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in KINDS and p.stem != "grid"}
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(sorted(KINDS))})")
    return files


def build(rows: list[tuple[str, ...]], names: tuple[str, str], question: str, seconds: float, seed: int) -> str:
    """The page. Order and sides are a function of the seed."""
    order = [rng.permute(i, len(rows), rng.key(seed, "order")) for i in range(len(rows))]
    shown = []
    for i in order:
        sources = [_source(path) for path in rows[i]]
        pair = {
            "name": Path(rows[i][0]).stem,
            "a": sources[0],
            "b": sources[1],
            "flip": rng.key(seed, "flip", i) % 2 == 1,
        }
        shown.append(pair | ({"context": sources[2]} if len(sources) > 2 else {}))
    study = {"question": question, "seconds": seconds, "seed": seed, "a": names[0], "b": names[1], "pairs": shown}
    body = STYLE + BODY.format(question=html.escape(question), count=len(rows), seconds=seconds)
    return html.page(question, body, SCRIPT.replace("{study}", json.dumps(study).replace("</", "<\\/")))


def _source(path: str) -> str:
    try:
        with Image.open(path) as image:
            return html.data_uri(Image.fromarray(np.asarray(image.convert("RGB"))))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from error


def read(paths: list[str]) -> dict:
    """The answers of several files together, with the binomial (Wilson) interval of the share that chose A."""
    try:
        found = [json.loads(Path(path).read_text()) for path in paths]
        right = sum(answer["chosen"] == "a" for one in found for answer in one["answers"])
        n = sum(len(one["answers"]) for one in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--read {' '.join(paths)}: not answers of a study page ({error})") from error
    if not n:
        raise UserError(f"--read {' '.join(paths)}: there are no answers in it")
    low, high = wilson(right, n)
    return {"people": len(found), "answers": n, "chosen_a": right, "share": right / n, "low": low, "high": high}


def main(words: list[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__.strip())
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--output", default="study.html")
    parser.add_argument("--read", nargs="+")
    parser.add_argument("--context")
    parser.add_argument("--question", default="Which picture looks more real?")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    if options.read:
        print(json.dumps(read(options.read), indent=1))
        return
    if len(options.folders) != 2 or options.count < 1:
        raise UserError("a study needs two folders of pictures, A and B, and a --count of at least 1")
    a, b = map(Path, options.folders)
    rows = pairs(a, b, options.count, Path(options.context) if options.context else None)
    Path(options.output).write_text(build(rows, (str(a), str(b)), options.question, options.seconds, options.seed))
    print(f"{len(rows)} pairs: {options.output}")


if __name__ == "__main__":
    from latentdiff import cli

    cli.run(main)
