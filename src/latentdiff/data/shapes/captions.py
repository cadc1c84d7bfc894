"""Scenes in words, in several wordings, and what such a caption asks for."""

import operator
import random
import re
from typing import NamedTuple

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.shapes.scene import BACKGROUNDS, COLOURS, KINDS, Scene, relation

# what a caption may say instead of the first, canonical choice
SIZE_WORDS = ({"large": "large ", "small": "small "}, {"large": "big ", "small": "little "}, {"large": "", "small": ""})
RELATION_WORDS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
FRAMES = ("{things} on a {background} background", "on a {background} background, {things}", "{things}")


def caption(scene: Scene, key: int | None = None) -> str:
    """The scene in words; the canonical caption without a key and for half of the keys, which names all there is."""
    generator = random.Random(rng.key(key or 0, "caption"))
    choose = generator.choice if key is not None and generator.random() < 0.5 else operator.itemgetter(0)
    sizes = choose(SIZE_WORDS)
    names = [_with_article(f"{sizes[t.size]}{t.colour} {t.kind}") for t in scene.things]
    if len(names) == 2:
        where = relation(*scene.things)
        there, back = choose(RELATION_WORDS[where]), choose(RELATION_WORDS[OPPOSITE[where]])
        a, b = names
        text = choose((f"{a} {there} {b}", f"{b} {back} {a}", f"{a} and {b}"))
    else:
        text = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    return choose(FRAMES).format(things=text, background=scene.background)


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


class SampleSpec(NamedTuple):
    """What a caption names; None where it is silent. With a relation there are two things."""

    things: tuple[tuple[str | None, str, str], ...]  # (size, colour, kind)
    relation: str | None
    background: str | None


SIZE_OF = {word.strip(): size for words in SIZE_WORDS for size, word in words.items() if word}
RELATION_OF = {word: where for where, words in RELATION_WORDS.items() for word in words}
THING = re.compile(rf"an? (?:({'|'.join(SIZE_OF)}) )?({'|'.join(COLOURS)}) ({'|'.join(KINDS)})")
JOINT = re.compile(rf" ({'|'.join(RELATION_OF)}|and) |, ")
GROUND = re.compile(rf"^on an? ({'|'.join(BACKGROUNDS)}) background,? | on an? ({'|'.join(BACKGROUNDS)}) background$")


def parse(caption: str) -> SampleSpec:
    """What a caption in any of the data's wordings asks for; UserError when it is none of them."""
    text = caption.strip().lower().rstrip(".")
    ground = GROUND.search(text)
    parts = JOINT.split(GROUND.sub("", text, count=1))  # thing, joint, thing, ...
    found = [THING.fullmatch(part) for part in parts[::2]]
    where = [RELATION_OF[joint] for joint in parts[1::2] if joint in RELATION_OF]
    if not all(found) or len(found) > 3 or (where and len(found) != 2):
        raise UserError(f"caption {caption!r} cannot be read; one like 'a large red star on a gray background' can")
    things = tuple((SIZE_OF.get(match[1]), match[2], match[3]) for match in found)
    return SampleSpec(things, where[0] if where else None, (ground[1] or ground[2]) if ground else None)
