"""The command-line options of the benchmarks of tasks."""

import argparse
from pathlib import Path


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """The options that the benchmarks of drawn shapes and of photographs share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--count", type=int, default=200, help="number of images, at most")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--table", action="store_true")
    return parser
