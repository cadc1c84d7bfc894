"""A bar on a terminal for what takes long before training begins."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


def watched(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """The items, with a bar on the first rank's terminal, where tqdm is installed."""
    shown = total > 1 and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    if shown:
        try:
            from tqdm import tqdm

            items = tqdm(items, what, total, leave=False, unit="")
        except ImportError:
            print(f"{what}: {total:,}", file=sys.stderr)
    yield from items
