"""What sample.py must be given to draw from a run, told from the run's recipe alone. Imports no torch, as cli.py."""

from collections.abc import Callable, Iterable

from latentdiff.config import UserError

OPTIONS: dict[str, dict[str, Callable[[dict], str]]] = {  # kind of condition -> its options and what each one takes
    "Text": {"prompt": lambda c: "what to draw"},
    "Label": {"class": lambda c: f"a class: a number from 0 to {c['classes'] - 1}, or its name"},
    "Layout": {
        "layout": lambda c: (
            f"boxes of classes 0 to {c['classes'] - 1}, at most {c['objects']}: a JSON file "
            '{"objects": {"bbox": [[x, y, width, height], ...], "categories": [0, ...]}}, in shares of the picture, '
            'or in pixels of a "width" and "height" that it names'
        )
    },
    "Semantic": {"segmentation": lambda c: f"a map, an image of class numbers from 0 to {c['classes'] - 1}"},
    "LowRes": {"low_res": lambda c: "the small picture"},
    "Masked": {"image": lambda c: "the picture", "mask": lambda c: "an image of its size, white where to fill"},
}
KNOWN = {"image", "mask"}  # any other run takes them as well: known pixels are blended in while it draws


def needed(recipe: dict) -> dict[str, str]:
    """Option -> what it takes, for all that the run of this recipe.json cannot draw without."""
    return {name: say(c) for c in recipe["conditions"] for name, say in OPTIONS.get(c["type"], {}).items()}


def takes(recipe: dict, given: Iterable[str]) -> bool:
    """Whether a run draws from just these inputs."""
    rest = set(given) ^ set(needed(recipe))
    return not rest or rest == KNOWN and set(given) >= KNOWN


def check(run: object, recipe: dict, given: Iterable[str]) -> None:
    """UserError that names what is missing or too much."""
    given, wants = set(given), needed(recipe)
    missing = [f"{option(name)} ({say})" for name, say in wants.items() if name not in given]
    if missing:
        raise UserError(f"run {run} draws from {', '.join(map(option, wants))}: give it {' and '.join(missing)}")
    extra = given - set(wants) - KNOWN
    if extra:
        has = f"it draws from {', '.join(map(option, wants))}" if wants else "it draws without any condition"
        raise UserError(f"run {run} takes no {', '.join(map(option, sorted(extra)))}; {has}")
    if len(given & KNOWN) == 1:
        raise UserError("--image and --mask go together: the picture, and where it is to be filled")


def describe(run: object, recipe: dict) -> str:
    """What --help says of one run."""
    wants = needed(recipe)
    lines = [f"  {option(name)}".ljust(25) + say for name, say in wants.items()]
    return "\n".join([f"run {run} draws from" + (":" if wants else " nothing but a seed"), *lines])


def option(name: str) -> str:
    return "--" + name.replace("_", "-")
