"""Kill training runs, start them again until they are done, and compare them bit for bit with the unbroken run.

    python tests/loop/kills.py [KILLS of each kind, default 25] [SEED]

Four kinds: both stages, alone and on two gloo ranks. A kill is a SIGKILL that a process sends to itself at a chosen
event: an fsync, a rename, a file or a line half written, a batch of the statistics, a step. Runs are forked from this
process, which has imported all that is slow, and write to a folder that is deleted when all is well.
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
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import torch._dynamo  # noqa: E402, F401  the first optimiser of a process imports it, which takes seconds
from conftest import ROOT, STAGE_ONE, STAGE_TWO, rows, script, tensors_of  # noqa: E402

from latentdiff import cli  # noqa: E402
from latentdiff.autoencoder.autoencoder import Autoencoder  # noqa: E402
from latentdiff.data import encode_latents  # noqa: E402
from latentdiff.training import checkpoint, log, optim, run_dir  # noqa: E402

WORDS = ("data.count=32", "data.val_count=8", "train.steps=6", "train.batch_size=8", "train.checkpoint_every=2",
         "train.keep_checkpoints=2", "train.val_every=4", "train.sample_every=8", "train.precision=fp32", "name=run")  # fmt: skip
ONE = ("train.batch_size=4", "discriminator.start=2", "discriminator.ramp=2")  # statistics: by 16 pictures
TWO = ("cache.shard_size=8", "cache.batch_size=4", "sampling.steps=2")
KINDS = {
    "stage one, alone": (STAGE_ONE, ONE, 1),
    "stage two, alone": (STAGE_TWO, TWO, 1),
    "stage one, two ranks": (STAGE_ONE, ONE, 2),
    "stage two, two ranks": (STAGE_TWO, TWO, 2),
}
INSIDE = ("checkpoint", "cache shard", "statistics", "metrics line")  # what the issue names


class Bomb:
    """Counts events by place; at the chosen one the process kills itself."""

    def __init__(self, place: str = "", nth: int = 0) -> None:
        self.place, self.nth, self.inside, self.count = place, nth, ["elsewhere"], Counter()

    def event(self, place: str = "") -> None:
        place = place or self.inside[-1]
        self.count[place] += 1
        if (place, self.count[place]) == (self.place, self.nth):
            os.kill(os.getpid(), signal.SIGKILL)

    def within(self, owner: object, name: str, place: str) -> None:
        """What happens inside owner.name is an event of `place`."""
        real = getattr(owner, name)

        def entered(*args, **kwargs):
            self.inside.append(place)
            try:
                return real(*args, **kwargs)
            finally:
                self.inside.pop()

        setattr(owner, name, entered)

    def around(self, owner: object, name: str, place: str = "") -> None:
        """An event before and one after each call of owner.name."""
        real = getattr(owner, name)

        def noted(*args, **kwargs):
            self.event(place)
            result = real(*args, **kwargs)
            self.event(place)
            return result

        setattr(owner, name, noted)

    def torn(self, module: object) -> None:
        """An event while a safetensors file is half written."""
        real = module.save_file

        def halved(tensors: dict, path: Path, **kwargs) -> None:
            real(tensors, path, **kwargs)
            os.truncate(path, os.path.getsize(path) // 2)
            self.event()
            real(tensors, path, **kwargs)

        module.save_file = halved

    def arm(self, stage: object) -> None:
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
            (encode_latents, "_encode_rows"),
        ):
            self.around(owner, name)
        self.around(optim, "clip_grad_norm_", "step")
        self.torn(checkpoint)
        self.torn(encode_latents)
        log.open = self.lines
        if hasattr(stage, "statistics"):
            self.within(stage, "statistics", "statistics")
            self.around(Autoencoder, "moments")

    def lines(self, path: Path, mode: str = "r"):
        """open() for the log: its lines are written in two halves."""
        bomb, file = self, open(path, mode)  # noqa: SIM115

        class Halves:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, text: str) -> None:
                file.write(text[: len(text) // 2])
                file.flush()
                bomb.event()
                file.write(text[len(text) // 2 :])

        return Halves()


def train(kind: str, folder: Path, bombs: dict[int, Bomb]) -> dict[int, tuple[int, Counter]]:
    """Start the run once, in processes of its own: of each rank its exit code (-9: killed) and its events."""
    stage, words, size = KINDS[kind]
    words = (*WORDS, *words, *([f"cache.path={folder / 'cache'}"] if stage is STAGE_TWO else []))
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
            _child(stage, words, bombs.get(rank, Bomb()), folder / f"rank{rank}.log", writer)
        os.close(writer)
        ranks[child] = (rank, reader)
    return _wait(ranks)


def _child(stage: tuple[str, str], words: tuple[str, ...], bomb: Bomb, output: Path, writer: int) -> None:
    with open(output, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        os.chdir(ROOT)
        module = script(stage[0])
        sys.argv = [stage[0], stage[1], *words]
        bomb.arm(module)
        cli.run(module.main)
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    os.write(writer, repr(dict(bomb.count)).encode())
    sys.stdout.flush()
    os._exit(code)


def _wait(ranks: dict[int, tuple[int, int]]) -> dict[int, tuple[int, Counter]]:
    """As torchrun would: when one rank fails, the others are ended."""
    ended, left = {}, set(ranks)
    while left:
        child, status = os.waitpid(-1, 0)
        rank, reader = ranks[child]
        left.discard(child)
        code = os.waitstatus_to_exitcode(status)
        count = os.read(reader, 65536).decode()
        os.close(reader)
        ended[rank] = (code, Counter(eval(count or "{}")))
        if code:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return ended


def what_is_left(folder: Path) -> dict:
    """All that a finished run leaves, as (name, type, shape, bytes), and the metrics; no clock in it.

    Of the checkpoints the newest: a kill between a checkpoint's rename and the pruning may leave one too many.
    """
    found, newest = {"metrics": rows(folder / "run")}, checkpoint.list_checkpoints(folder / "run" / "checkpoints")[-1]
    for path in sorted({p.parent for p in folder.rglob("*.safetensors")}):
        if path.parent.name == "checkpoints" and path != newest:
            continue
        for name, tensor in tensors_of(path).items():
            bits = (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().flatten().numpy().tobytes())
            found[f"{path.relative_to(folder)}/{name}"] = bits
    return found


def trial(kind: str, root: Path, unbroken: dict, counts: list[Counter], kills: int, draw: random.Random) -> Counter:
    """One run, killed `kills` times or until it is done; it must end as the unbroken one. Where it was killed."""
    folder, landed = Path(tempfile.mkdtemp(dir=root)), Counter()
    for _ in range(kills):
        rank = draw.randrange(len(counts))
        place = draw.choice(sorted(counts[rank]))
        bomb = Bomb(place, draw.randint(1, counts[rank][place]))
        ended = train(kind, folder, {rank: bomb})
        assert ended[rank][0] in (0, -signal.SIGKILL), f"{kind}: rank {rank} ended with {ended[rank][0]}: {folder}"
        if ended[rank][0] == 0:
            break
        landed[place] += 1
    ended = train(kind, folder, {})
    assert not any(code for code, _ in ended.values()), f"{kind}: started again it ends with {ended}: {folder}"
    now = what_is_left(folder)
    different = [name for name in unbroken.keys() | now.keys() if unbroken.get(name) != now.get(name)]
    assert not different, f"{kind}: killed in {dict(landed)}, differs in {different[:5]}: {folder}"
    shutil.rmtree(folder)
    return landed


def main(kills: int = 25, seed: int = 0, say: Callable[[str], None] = print) -> Counter:
    """Kill every kind of run `kills` times; where the kills landed."""
    total, root = Counter(), Path(tempfile.mkdtemp(prefix="kills"))
    for kind in KINDS:
        draw, landed, runs = random.Random(f"{kind} {seed}"), Counter(), 0
        (root / "unbroken").mkdir()
        ended = train(kind, root / "unbroken", {})
        assert not any(code for code, _ in ended.values()), f"{kind}: {ended}: {root}"
        unbroken, counts = what_is_left(root / "unbroken"), [ended[rank][1] for rank in sorted(ended)]
        while landed.total() < kills:
            landed += trial(kind, root, unbroken, counts, min(5, kills - landed.total()), draw)
            runs += 1
        say(f"{kind}: {landed.total()} kills in {runs} runs, all equal to the unbroken one: {dict(landed)}")
        total += landed
        shutil.rmtree(root / "unbroken")
    shutil.rmtree(root)
    say(f"{total.total()} kills, {sum(total[place] for place in INSIDE)} of them inside {', '.join(INSIDE)}")
    return total


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
