"""python -m benchmarks [NAME ARGUMENTS ...]: run one benchmark of this folder; without a name, list them."""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
names = sorted([p.stem for p in FOLDER.glob("[a-z]*.py")] + [p.parent.name for p in FOLDER.glob("[a-z]*/__main__.py")])
if len(sys.argv) > 1 and sys.argv[1] in names:
    sys.argv = sys.argv[1:]
    runpy.run_module(f"benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=True)
else:
    print(f"benchmarks: {', '.join(names)}   (python -m benchmarks NAME --help)")
    sys.exit(2 if len(sys.argv) > 1 else 0)
