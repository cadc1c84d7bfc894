"""A bar on a terminal for what takes long; silent elsewhere. Training has its own, in its log."""

import os
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any


def bar(total: int, what: str, unit: str = "step") -> Any:
    """A progress bar with update() and close(), on the first rank's terminal where tqdm is installed."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        try:
            from tqdm import tqdm

            return tqdm(total=total, desc=what, unit=unit, leave=False)
        except ImportError:
            print(f"{what}: {total:,}", file=sys.stderr)
    return SimpleNamespace(update=lambda: None, close=lambda: None)


def watched(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, under a bar where there is more than one."""
    shown = bar(total, what, "") if total > 1 else None
    for item in items:
        yield item
        if shown is not None:
            shown.update()
    if shown is not None:
        shown.close()
