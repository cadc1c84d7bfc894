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
from argparse import Namespace
from pathlib import Path

from latentdiff import cli, rng
from latentdiff.config import UserError
from latentdiff.data.image import BadImage, open_image
from latentdiff.data.shapes.reader import wilson
from latentdiff.evaluation import html

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp"}

STYLE, BODY, SCRIPT = (
    Path(__file__).with_name(f"user_study.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "html", "js")
)


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


def build_page(pairs: list[tuple[str, ...]], names: tuple[str, str], question: str, seconds: float, seed: int) -> str:
    """The HTML page of `pairs` (see pair_files); names: those of A and B, for the result.

    The order of the pairs and the side of A depend on the seed only.
    """
    shown = []
    for i in (rng.permute(i, len(pairs), rng.key(seed, "order")) for i in range(len(pairs))):
        images = dict(zip(("a", "b", "context"), map(_data_uri, pairs[i])))
        shown.append({"name": Path(pairs[i][0]).stem, "flip": rng.key(seed, "flip", i) % 2 == 1} | images)
    study = {"question": question, "seconds": seconds, "seed": seed, "a": names[0], "b": names[1], "pairs": shown}
    data = json.dumps(study).replace("<", "\\u003c")  # so that no text can end the script element
    body = BODY.format(question=html.escape(question), count=len(pairs), seconds=seconds, study=data)
    return html.page(question, body, STYLE, SCRIPT)


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
    return {"participants": len(results), "answers": n, "chosen_a": chosen_a, "fraction": chosen_a / n,
            "low": low, "high": high}  # fmt: skip


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    if options.read:
        print(json.dumps(read_answers(options.read), indent=1))
        return
    a, b = options.folders
    pairs = pair_files(Path(a), Path(b), options.count, options.context)
    page = build_page(pairs, (a, b), options.question, options.seconds, options.seed)
    Path(options.output).write_text(page, encoding="utf-8")
    print(f"{len(pairs)} pairs: {options.output}")


def parse_arguments(argv: list[str]) -> Namespace:
    parser = cli.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--output", default="study.html")
    parser.add_argument("--read", nargs="+")
    parser.add_argument("--context", type=Path)
    parser.add_argument("--question", default="Which image looks more real?")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if not options.read and len(options.folders) != 2:
        raise UserError(f"a user study needs two folders of images, A and B, not {len(options.folders)}; see --help")
    if options.count < 1:
        raise UserError(f"--count {options.count}: it must be at least 1")
    return options


if __name__ == "__main__":
    cli.answer_help(__doc__)
    cli.run(main)
