"""Fields of the original release's configs, read by name and type; what is missing or cannot be is said in words."""

from __future__ import annotations

from typing import Any

from latentdiff.config import UserError

MISSING = object()


class Options:
    """A mapping of a config and the path to it."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{where} is {values!r}; it must be a mapping, as in the original release's config.yaml")
        self.values, self.where = values, where

    def get(self, name: str, default: Any = MISSING) -> Any:
        value = self.values.get(name, default)
        if value is MISSING:
            raise UserError(f"{self.where} has no {name}, which the converter needs")
        return value

    def part(self, name: str, default: Any = MISSING) -> Options:
        where = name if self.where == "the config" else f"{self.where}.{name}"
        value = self.get(name, default)
        return Options({} if value is None else value, where)

    def target(self) -> str:
        """The last word of `target`: a class, whichever package it is in."""
        return str(self.get("target")).rpartition(".")[2]

    def integer(self, name: str, default: Any = MISSING) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{self.where}.{name} is {value!r}; it must be a whole number")
        return value

    def integers(self, name: str, default: Any = MISSING) -> tuple[int, ...]:
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
            raise UserError(f"{self.where}.{name} is {value!r}; it must be a list of whole numbers")
        return tuple(value)

    def number(self, name: str, default: Any = MISSING) -> float:
        value = self.get(name, default)
        try:
            return float(value)  # YAML reads 1e-4 as text
        except (TypeError, ValueError):
            raise UserError(f"{self.where}.{name} is {value!r}; it must be a number") from None

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.get(name, default)
        if value not in known:
            raise UserError(f"{self.where}.{name} is {value!r}; known are {', '.join(known)}")
        return value

    def same(self, name: str, wanted: Any, default: Any = MISSING) -> Options:
        """Refuse any other value than `wanted`: our networks have no such variant."""
        value = self.get(name, default)
        if value != wanted:
            raise UserError(f"{self.where}.{name} is {value!r}; this project's networks know only {wanted!r}")
        return self
