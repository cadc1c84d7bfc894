"""Captions of scenes in several wordings, and a parser for them."""

import operator
import random
import re
from typing import NamedTuple

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.shapes.scene import BACKGROUNDS, COLOURS, KINDS, Scene, relation

# the first choice is that of the canonical caption
SIZE_WORDS = ({"large": "large ", "small": "small "}, {"large": "big ", "small": "little "}, {"large": "", "small": ""})
RELATION_WORDS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
TEMPLATES = ("{objects} on a {background} background", "on a {background} background, {objects}", "{objects}")


def caption(scene: Scene, key: int | None = None) -> str:
    """Describe a scene: with every attribute without a key and for half of the keys, else in a random wording."""
    generator = random.Random(rng.key(key or 0, "caption"))
    choose = generator.choice if key is not None and generator.random() < 0.5 else operator.itemgetter(0)
    sizes = choose(SIZE_WORDS)
    names = [_with_article(f"{sizes[shape.size]}{shape.colour} {shape.kind}") for shape in scene.objects]
    if len(names) == 2:
        name = relation(*scene.objects)
        forward, backward = choose(RELATION_WORDS[name]), choose(RELATION_WORDS[OPPOSITE[name]])
        a, b = names
        text = choose((f"{a} {forward} {b}", f"{b} {backward} {a}", f"{a} and {b}"))
    else:
        text = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    return choose(TEMPLATES).format(objects=text, background=scene.background)


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


class ParsedCaption(NamedTuple):
    """The attributes that a caption names; None for those that it does not. With a relation there are two objects."""

    objects: tuple[tuple[str | None, str, str], ...]  # (size, colour, kind)
    relation: str | None
    background: str | None


SIZE_OF = {word.strip(): size for words in SIZE_WORDS for size, word in words.items() if word}
RELATION_OF = {phrase: name for name, phrases in RELATION_WORDS.items() for phrase in phrases}
OBJECT = re.compile(rf"an? (?:({'|'.join(SIZE_OF)}) )?({'|'.join(COLOURS)}) ({'|'.join(KINDS)})")
JOINT = re.compile(rf" ({'|'.join(RELATION_OF)}|and) |, ")
GROUND = rf"on an? ({'|'.join(BACKGROUNDS)}) background"
BACKGROUND = re.compile(rf"^{GROUND},? | {GROUND}$")


def parse(caption: str) -> ParsedCaption:
    """The attributes that a caption in any wording of this dataset names; UserError for other captions."""
    text = caption.strip().lower().rstrip(".")
    background = BACKGROUND.search(text)
    phrases = JOINT.split(BACKGROUND.sub("", text, count=1))  # object, joint, object, ...
    matches = [OBJECT.fullmatch(phrase) for phrase in phrases[::2]]
    relations = [RELATION_OF[joint] for joint in phrases[1::2] if joint in RELATION_OF]
    if not all(matches) or len(matches) > 3 or (relations and len(matches) != 2):
        raise UserError(f"caption {caption!r} cannot be parsed; use one like 'a large red star on a gray background'")
    objects = tuple((SIZE_OF.get(match[1]), match[2], match[3]) for match in matches)
    colour = (background[1] or background[2]) if background else None
    return ParsedCaption(objects, relations[0] if relations else None, colour)
