"""Kill training runs, resume them until they are done, and compare them bit for bit with an uninterrupted run.

    python tests/loop/kills.py [KILLS of each kind, default 25] [SEED]

Four kinds: both stages, on one and on two gloo ranks. A process sends SIGKILL to itself at a chosen event: an fsync,
a rename, a half-written file or line, a batch of the latent statistics, a training step. Runs are forked from this
process, which has done the slow imports, and write to a folder that is deleted if all runs are equal.
"""

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import torch._dynamo  # noqa: E402, F401  the first optimiser of a process imports it, which takes seconds
from conftest import ROOT, STAGE_ONE, STAGE_TWO, metrics_of, script, tensors_of  # noqa: E402

from latentdiff import cli  # noqa: E402
from latentdiff.autoencoder.autoencoder import Autoencoder  # noqa: E402
from latentdiff.data import encode_latents  # noqa: E402
from latentdiff.training import checkpoint, log, optim, run_dir  # noqa: E402

ARGS = ("data.count=32", "data.val_count=8", "train.steps=6", "train.batch_size=8", "train.checkpoint_every=2",
        "train.keep_checkpoints=2", "train.val_every=4", "train.sample_every=8", "train.precision=fp32",
        "name=run")  # fmt: skip
ONE = (
    "train.batch_size=4",
    "discriminator.start=2",
    "discriminator.ramp=2",
)  # statistics of 16 images at once
TWO = ("cache.shard_size=8", "cache.batch_size=4", "sampling.steps=2")
KINDS = {
    "stage one, one rank": (STAGE_ONE, ONE, 1),
    "stage two, one rank": (STAGE_TWO, TWO, 1),
    "stage one, two ranks": (STAGE_ONE, ONE, 2),
    "stage two, two ranks": (STAGE_TWO, TWO, 2),
}
WRITES = ("checkpoint", "cache shard", "statistics", "metrics line")  # the summary counts kills during these


class Killer:
    """Counts events by phase; kills the process at the nth event of a phase."""

    def __init__(self, phase: str = "", nth: int = 0) -> None:
        self.phase, self.nth, self.phases, self.count = phase, nth, ["other"], Counter()

    def event(self, phase: str = "") -> None:
        phase = phase or self.phases[-1]
        self.count[phase] += 1
        if (phase, self.count[phase]) == (self.phase, self.nth):
            os.kill(os.getpid(), signal.SIGKILL)

    def within(self, owner: object, name: str, phase: str) -> None:
        """Count events during calls of owner.name as events of `phase`."""
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.phases.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.phases.pop()

        setattr(owner, name, wrapped)

    def around(self, owner: object, name: str, phase: str = "") -> None:
        """Add an event before and after each call of owner.name."""
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.event(phase)
            result = function(*args, **kwargs)
            self.event(phase)
            return result

        setattr(owner, name, wrapped)

    def half_written(self, module: object) -> None:
        """Add an event when a safetensors file is half written."""
        save_file = module.save_file

        def wrapped(tensors: dict, path: Path, **kwargs) -> None:
            save_file(tensors, path, **kwargs)
            os.truncate(path, os.path.getsize(path) // 2)
            self.event()
            save_file(tensors, path, **kwargs)

        module.save_file = wrapped

    def install(self, stage: object) -> None:
        self.within(checkpoint, "save", "checkpoint")
        self.within(encode_latents, "_write_shard", "cache shard")
        self.within(log.Log, "write", "metrics line")
        self.within(log.Log, "start", "metrics line")
        self.within(run_dir, "create_run_dir", "folder")
        self.within(run_dir, "finish_run", "finish")
        for owner, name in (
            (os, "replace"),
            (os, "rename"),
            (os, "fsync"),
            (shutil, "rmtree"),
            (encode_latents, "_encode_entries"),
        ):
            self.around(owner, name)
        self.around(optim, "clip_grad_norm_", "step")
        self.half_written(checkpoint)
        self.half_written(encode_latents)
        log.open = self.open
        if hasattr(stage, "latent_stats"):
            self.within(stage, "latent_stats", "statistics")
            self.around(Autoencoder, "moments")

    def open(self, path: Path, mode: str = "r"):
        """open() for the log, which writes each line in two halves with an event between them."""
        killer, file = self, open(path, mode)  # noqa: SIM115

        class SplitWrites:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, text: str) -> None:
                file.write(text[: len(text) // 2])
                file.flush()
                killer.event()
                file.write(text[len(text) // 2 :])

        return SplitWrites()


def train(kind: str, folder: Path, killers: dict[int, Killer]) -> dict[int, tuple[int, Counter]]:
    """Start the run once, in child processes; rank -> its exit code (-9: killed) and its events."""
    stage, argv, size = KINDS[kind]
    argv = (*ARGS, *argv, *([f"cache.path={folder / 'cache'}"] if stage is STAGE_TWO else []))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {}
    for rank in range(size):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": port, "LATENTDIFF_RUNS": folder}  # fmt: skip
            os.environ.update({name: str(value) for name, value in world.items()})
            _child(stage, argv, killers.get(rank, Killer()), folder / f"rank{rank}.log", writer)
        os.close(writer)
        ranks[child] = (rank, reader)
    return _wait(ranks)


def _child(stage: tuple[str, str], argv: tuple[str, ...], killer: Killer, output: Path, writer: int) -> None:
    with open(output, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        os.chdir(ROOT)
        module = script(stage[0])
        sys.argv = [stage[0], stage[1], *argv]
        killer.install(module)
        cli.run(module.main)
        code = 0
    except SystemExit as exit_info:
        code = exit_info.code or 0
    except BaseException:
        traceback.print_exc()
    os.write(writer, repr(dict(killer.count)).encode())
    sys.stdout.flush()
    os._exit(code)


def _wait(ranks: dict[int, tuple[int, int]]) -> dict[int, tuple[int, Counter]]:
    """Wait for all ranks; as in torchrun, when one fails, the others are killed."""
    results, running = {}, set(ranks)
    while running:
        child, status = os.waitpid(-1, 0)
        rank, reader = ranks[child]
        running.discard(child)
        code = os.waitstatus_to_exitcode(status)
        count = os.read(reader, 65536).decode()
        os.close(reader)
        results[rank] = (code, Counter(eval(count or "{}")))
        if code:
            for other in running:
                os.kill(other, signal.SIGKILL)
    return results


def contents(folder: Path) -> dict:
    """All tensors of a finished run as (type, shape, bytes), and its metrics without times.

    Of the checkpoints only the newest: a kill between the rename of a checkpoint and the pruning leaves one too many.
    """
    result, newest = (
        {"metrics": metrics_of(folder / "run")},
        checkpoint.list_checkpoints(folder / "run" / "checkpoints")[-1],
    )
    for path in sorted({p.parent for p in folder.rglob("*.safetensors")}):
        if path.parent.name == "checkpoints" and path != newest:
            continue
        for name, tensor in tensors_of(path).items():
            bits = (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().flatten().numpy().tobytes())
            result[f"{path.relative_to(folder)}/{name}"] = bits
    return result


def trial(
    kind: str, root: Path, expected: dict, counts: list[Counter], kills: int, generator: random.Random
) -> Counter:
    """Kill one run `kills` times or until it is done, and compare it with `expected`; the phases of the kills."""
    folder, phases = Path(tempfile.mkdtemp(dir=root)), Counter()
    for _ in range(kills):
        rank = generator.randrange(len(counts))
        phase = generator.choice(sorted(counts[rank]))
        killer = Killer(phase, generator.randint(1, counts[rank][phase]))
        code, _ = train(kind, folder, {rank: killer})[rank]
        assert code in (0, -signal.SIGKILL), f"{kind}: rank {rank} ended with {code}: {folder}"
        if code == 0:
            break
        phases[phase] += 1
    results = train(kind, folder, {})
    assert not any(code for code, _ in results.values()), f"{kind}: the resumed run ended with {results}: {folder}"
    resumed = contents(folder)
    different = [name for name in expected.keys() | resumed.keys() if expected.get(name) != resumed.get(name)]
    assert not different, f"{kind}: killed in {dict(phases)}, differs in {different[:5]}: {folder}"
    shutil.rmtree(folder)
    return phases


def main(kills: int = 25, seed: int = 0) -> Counter:
    """Kill every kind of run `kills` times; the phases of the kills."""
    total, root = Counter(), Path(tempfile.mkdtemp(prefix="kills"))
    for kind in KINDS:
        generator, phases, runs = random.Random(f"{kind} {seed}"), Counter(), 0
        reference = root / "reference"
        reference.mkdir()
        results = train(kind, reference, {})
        assert not any(code for code, _ in results.values()), f"{kind}: {results}: {root}"
        expected, counts = contents(reference), [results[rank][1] for rank in sorted(results)]
        while phases.total() < kills:
            phases += trial(kind, root, expected, counts, min(5, kills - phases.total()), generator)
            runs += 1
        print(f"{kind}: {phases.total()} kills in {runs} runs, all equal to the uninterrupted one: {dict(phases)}")
        total += phases
        shutil.rmtree(reference)
    shutil.rmtree(root)
    print(f"{total.total()} kills, {sum(total[phase] for phase in WRITES)} of them inside {', '.join(WRITES)}")
    return total


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
