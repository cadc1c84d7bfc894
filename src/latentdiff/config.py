"""Recipes: dataclass tree <-> recipe file <-> command line <-> saved JSON.

A recipe is a tree of frozen dataclasses. A choice (of the bottleneck, of the data format) is a field annotated with a
union of dataclasses; JSON and the command line name the class, which is looked up in that union only.
"""

import difflib
import hashlib
import inspect
import json
import re
import runpy
import sys
import types
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

FIELD = r"^    (\w+): (?:(?!^    \w+:).)*?#\s*([^\n]+)$"  # a field with a comment, before the next field


class UserError(Exception):
    """An error that the user can fix; the scripts print it as one line and exit with code 2."""


# ---- recipe file -> tree


def load(path: str) -> Any:
    """The recipe of another file; `path` is relative to the recipe file that calls this."""
    caller = sys._getframe(1).f_globals.get("__file__", ".")
    return read_recipe(Path(caller).parent / path)


def read_recipe(path: str | Path, root: type | None = None) -> Any:
    """Run a recipe file (trusted code) and return its `recipe`, checked; its name defaults to the file's stem."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no recipe at {path}; see recipes/autoencoder and recipes/diffusion")
    try:
        recipe = runpy.run_path(str(path), run_name="recipe").get("recipe")
        if isinstance(recipe, type) or not is_dataclass(recipe) or (root is not None and type(recipe) is not root):
            expected = root.__name__ if root else "a dataclass"
            raise UserError(f"it must set `recipe` to {expected}; it is {type(recipe).__name__}")
        recipe = checked(recipe, type(recipe), "")
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from error
    except Exception as error:  # a recipe is a program, which may fail in any way
        raise UserError(f"recipe {path}: {_unknown_field(error) or f'{type(error).__name__}: {error}'}") from error
    return recipe if root is None else recipe.named(path.stem)


def _unknown_field(error: Exception) -> str:
    """The message for an unknown field in a recipe file, TrainConfig(stepz=1); "" for any other error."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    trace = error.__traceback__
    while match and trace:
        kind = trace.tb_frame.f_globals.get(match[1])
        if is_dataclass(kind):
            return _no_field(match[1], match[2], [f.name for f in fields(kind)])
        trace = trace.tb_next
    return ""


def _no_field(where: str, name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"{where} has no field {name!r}; {f'did you mean {close[0]!r}? ' if close else ''}It has {', '.join(names)}"


# ---- types


def checked(value: Any, hint: Any, where: str) -> Any:
    """The value with the type of the annotation (lists become tuples, 1 becomes 1.0), or a UserError with its name."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for option in options:
            if option is type(value) or (option is type(None) and value is None):
                return checked(value, option, where)
        simple = [o for o in options if not is_dataclass(o) and o is not type(None)]
        if value is not None and len(simple) == 1:
            return checked(value, simple[0], where)
    elif origin is tuple and isinstance(value, (tuple, list)):
        return tuple(checked(item, options[0], f"{where}.{i}") for i, item in enumerate(value))
    elif is_dataclass(hint) and type(value) is hint:
        hints = get_type_hints(hint)
        prefix = f"{where}." if where else ""
        news = {f.name: checked(getattr(value, f.name), hints[f.name], prefix + f.name) for f in fields(value)}
        return replace(value, **news)
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is type(value) or hint is type(None) and value is None:
        return value
    raise UserError(f"{where} is {value!r}; it must be {_name(hint)}")


def check_types(node: Any, where: str) -> None:
    """Check the types of all fields of a dataclass; for its __post_init__, before values are compared."""
    for name, hint in get_type_hints(type(node)).items():
        checked(getattr(node, name), hint, f"{where}.{name}")


def _name(hint: Any) -> str:
    """A type for a message: 'a whole number', 'KL, VQ or Identity'."""
    simple = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    if hint in simple:
        return simple[hint]
    if get_origin(hint) is tuple:
        return f"a list, each item {_name(get_args(hint)[0])}"
    if get_args(hint):
        names = [_name(option) for option in get_args(hint)]
        return ", ".join(names[:-1]) + " or " + names[-1]
    return short_name(hint)


# ---- command line -> tree


def override(tree: Any, assignments: list[str]) -> Any:
    """Apply `train.lr=5e-5`, `conditions.0.dropout=0.2`, `autoencoder.bottleneck=VQ` from the command line."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"{assignment!r} is neither a recipe (.py) nor an assignment such as train.lr=5e-5")
        tree = _set(tree, type(tree), path.split("."), text, "")
    return checked(tree, type(tree), "")


def _set(node: Any, hint: Any, path: list[str], text: str, where: str) -> Any:
    if not path:
        return _parsed(text, hint, node, where)
    name, field_path = path[0], f"{where}.{path[0]}".lstrip(".")
    if isinstance(node, tuple):
        if not name.isdigit() or int(name) >= len(node):
            raise UserError(f"{where} has no item {name!r}; it has {len(node)}, counted from 0")
        item = _set(node[int(name)], get_args(hint)[0], path[1:], text, field_path)
        return node[: int(name)] + (item,) + node[int(name) + 1 :]
    if not is_dataclass(node):
        raise UserError(f"{where} is {node!r} and has no field {name!r}")
    names = [f.name for f in fields(node)]
    if name not in names:
        raise UserError(_no_field(where or "the recipe", name, names))
    return replace(
        node, **{name: _set(getattr(node, name), get_type_hints(type(node))[name], path[1:], text, field_path)}
    )


READERS = {
    bool: lambda text: {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()],
    int: lambda text: int(str(Fraction(text))),  # 1e6 is a whole number, 1.5 a ValueError
    float: float,
    str: str,
}


def _parsed(text: str, hint: Any, node: Any, where: str) -> Any:
    """Parse text from the command line as the type of the field."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    for option in options:
        if is_dataclass(option) and short_name(option) == text:
            return node if type(node) is option else option()
    if is_dataclass(node) and "path" in (f.name for f in fields(node)):
        return replace(node, path=text)  # autoencoder=RUN, data=FOLDER: the path alone
    for option in options:
        try:
            if option in READERS:
                return READERS[option](text)
            if get_origin(option) is tuple:
                item, values = get_args(option)[0], text.strip("()").split(",")
                values = json.loads(text) if text.startswith("[") else [v.strip() for v in values if v.strip()]
                return tuple(_parsed(v, item, None, where) if isinstance(v, str) else v for v in values)
        except (ValueError, KeyError, OverflowError):
            continue
    raise UserError(f"{where}={text} cannot be read; it must be {_name(hint)}")


# ---- tree <-> JSON


def to_dict(node: Any) -> Any:
    """Plain data for JSON; every dataclass has the short name of its class under "type"."""
    if is_dataclass(node):
        return {"type": short_name(type(node))} | {f.name: to_dict(getattr(node, f.name)) for f in fields(node)}
    return [to_dict(item) for item in node] if isinstance(node, tuple) else node


def from_dict(data: Any, hint: Any, where: str = "recipe") -> Any:
    """The inverse of to_dict; the class is looked up in the annotation of the field."""
    if isinstance(data, dict):
        options = {short_name(o): o for o in (get_args(hint) or (hint,)) if is_dataclass(o)}
        kind = options.get(data.get("type"))
        if kind is None:
            raise UserError(f"{where} is of type {data.get('type')!r}; it must be {', '.join(options)}")
        hints = get_type_hints(kind)
        unknown = set(data) - set(hints) - {"type"}
        if unknown:
            names = ", ".join(sorted(unknown))
            raise UserError(f"{where} has unknown fields {names}; was it written by a newer version?")
        return kind(**{k: from_dict(v, hints[k], f"{where}.{k}") for k, v in data.items() if k != "type"})
    if isinstance(data, list):
        item = next((get_args(o)[0] for o in (hint, *get_args(hint)) if get_origin(o) is tuple), Any)
        return tuple(from_dict(x, item, f"{where}.{i}") for i, x in enumerate(data))
    return data


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two trees differ: (dotted path, old, new)."""
    if is_dataclass(old) and type(old) is type(new):
        pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(old)]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new))]
    else:
        return [] if old == new else [(where, old, new)]
    return [d for name, a, b in pairs for d in differences(a, b, f"{where}.{name}".lstrip("."))]


# ---- tree -> help


def describe(node: Any, where: str = "") -> list[str]:
    """One line per field: its path, its value and its meaning, which is the comment at its line in the source."""
    lines = []
    for field in fields(node):
        value, path = getattr(node, field.name), f"{where}{field.name}"
        items = value if isinstance(value, tuple) and any(map(is_dataclass, value)) else ()
        children = [("", value)] if is_dataclass(value) else [(f"{i}.", item) for i, item in enumerate(items)]
        shown = ", ".join(short_name(type(c)) for _, c in children) if children else json.dumps(to_dict(value))
        lines.append(f"{path} = {shown}".ljust(44) + "  " + meanings(type(node)).get(field.name, ""))
        lines += [line for prefix, child in children for line in describe(child, f"{path}.{prefix}")]
    return lines


def meanings(kind: type) -> dict[str, str]:
    """Field name -> the comment at the end of its line or lines, in the class or a base class."""
    sources = [inspect.getsource(base) for base in reversed(kind.__mro__[:-1])]
    return {name: text for source in sources for name, text in re.findall(FIELD, source, re.MULTILINE | re.DOTALL)}


def short_name(kind: type) -> str:
    """The name of a settings class in JSON and on the command line: FolderConfig is Folder."""
    return kind.__name__.removesuffix("Config")


def hash_of(node: Any) -> str:
    """A short hash of a recipe."""
    return hashlib.sha256(json.dumps(to_dict(node), sort_keys=True).encode()).hexdigest()[:16]
