import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.encode_latents import entry_key, open_cache
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImage
from latentdiff.data.latent_cache import CachedLatents, LatentCacheConfig
from latentdiff.training.distributed import World

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))
SMALL = LatentCacheConfig(shard_size=4, batch_size=3)


def quiet(text):
    pass


class Images:
    """Item i is a random image; the lowest bit of the key mirrors it, the others shift its colours."""

    def __init__(self, n=10, bad=(), name="a"):
        self.n, self.bad, self.name, self.asked = n, set(bad), name, []

    def __len__(self):
        return self.n

    def id(self, i):
        return f"{self.name}-{i}"

    def record(self, i, key):
        return {"id": self.id(i), "caption": f"image {i}, {'second' if key % 2 else 'first'} wording"}

    def item(self, i, key):
        self.asked.append(i)
        if i in self.bad:
            raise BadImage("is torn")
        image = np.random.default_rng(i).integers(0, 200, (4, 6, 3), dtype=np.uint8) + np.uint8(key // 2 % 50)
        return self.record(i, key) | {"image": image[:, ::-1] if key & 1 else image}

    def fingerprint(self):
        return f"images-{self.name}-{self.n}"


class Encoder:
    """Moments of a image: 2 x 2 averages as mean, and a log-variance that depends on them."""

    def __init__(self, limit=10**9, logvar=True):
        self.limit, self.logvar, self.sizes = limit, logvar, []

    def __call__(self, batch):
        x = loader.images(batch)
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("too much")
        mean = torch.nn.functional.avg_pool2d(x, 2)
        return mean, mean * 0.5 - 1 if self.logvar else None


def opened(folder, data, encode=None, config=SMALL, weights="weights", world=SINGLE_PROCESS, info=quiet):
    return open_cache(folder, config, data, weights, encode or Encoder(), world, info)


def image_of(data, i, key):
    return loader.images({"image": torch.from_numpy(data.item(i, key)["image"].copy())[None]})


# ---- what it holds


def test_rows_are_the_moments_of_their_images(tmp_path):
    data = Images()
    made = opened(tmp_path, data)
    assert len(made) == 10 and len(list(tmp_path.glob("shard_*"))) == 3
    for i in range(10):
        mean, logvar = Encoder()({"image": torch.from_numpy(data.item(i, entry_key(data.id(i), 0))["image"])[None]})
        row = made.entry(i)
        assert np.array_equal(row["mean"], mean[0].numpy()) and np.array_equal(row["logvar"], logvar[0].numpy())
        assert row["ok"] and row["key"] == entry_key(data.id(i), 0)


def test_without_a_log_variance_there_is_none(tmp_path):
    made = opened(tmp_path, Images(), Encoder(logvar=False))
    assert "logvar" not in made.entry(0) and "logvar" not in CachedLatents(Images(), made).item(0, 0)


def test_statistics_are_those_of_posterior_samples(tmp_path):
    data = Images(10, bad=(2,))
    mean, variance = opened(tmp_path, data).statistics()
    x = torch.cat([image_of(data, i, entry_key(data.id(i), 0)) for i in range(10) if i != 2])
    m = torch.nn.functional.avg_pool2d(x, 2).double()
    assert mean == pytest.approx(m.mean((0, 2, 3)).numpy(), abs=1e-6)
    expected = m.var((0, 2, 3), correction=0) + (m * 0.5 - 1).exp().mean((0, 2, 3))
    assert variance == pytest.approx(expected.numpy(), rel=1e-5)
    samples = m + (m * 0.25 - 0.5).exp() * torch.randn(2000, *m.shape, generator=torch.Generator().manual_seed(0))
    assert variance == pytest.approx(samples.var((0, 1, 3, 4)).numpy(), rel=0.02)


def test_copies_have_keys_of_their_own_and_alternate_in_flip(tmp_path):
    data = Images(3)
    made = opened(tmp_path, data, config=LatentCacheConfig(copies=4, shard_size=5, batch_size=3))
    assert len(made) == 12
    for i in range(3):
        keys = [made.entry(4 * i + copy)["key"] for copy in range(4)]
        assert [key & 1 for key in keys] == [0, 1, 0, 1]
        assert keys[0] >> 1 == keys[1] >> 1 != keys[2] >> 1  # a crop and its mirror image
        for copy, key in enumerate(keys):
            flipped = image_of(data, i, key)
            assert np.array_equal(
                made.entry(4 * i + copy)["mean"], torch.nn.functional.avg_pool2d(flipped, 2)[0].numpy()
            )
    plain, mirrored = (made.entry(copy)["mean"] for copy in (0, 1))
    assert np.allclose(plain[:, :, ::-1], mirrored) and not np.array_equal(plain, mirrored)


def test_flipped_copies_of_a_real_folder_are_encoded_from_the_flipped_image(tmp_path):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    (tmp_path / "images").mkdir()
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "images" / "a.png")
    data = FolderDataset(FolderConfig(path=str(tmp_path / "images"), size=8, flip=True), "train")

    def lopsided(batch):  # not symmetric: the flipped latent is not the latent of the flipped image
        x = loader.images(batch)
        return x[..., ::2, ::2], None

    made = opened(tmp_path / "cache", data, lopsided, LatentCacheConfig(copies=2))
    plain, flipped = (made.entry(copy)["mean"] for copy in (0, 1))
    assert np.allclose(plain[0, 0], gray[0, ::2] / 127.5 - 1, atol=1e-6)
    assert np.allclose(flipped[0, 0], gray[0, ::-1][::2] / 127.5 - 1, atol=1e-6)
    assert not np.allclose(flipped, plain[:, :, ::-1])


def test_captions_are_joined_by_id_and_chosen_anew(tmp_path):
    data = Images(5)
    rows = CachedLatents(data, opened(tmp_path, data, config=LatentCacheConfig(copies=2, shard_size=4, batch_size=3)))
    assert len(rows) == 10
    for r in range(10):
        assert rows.id(r) == f"a-{r // 2}"
        assert rows.item(r, 4)["caption"] == f"image {r // 2}, first wording"
        assert rows.item(r, 5)["caption"] == f"image {r // 2}, second wording"
        assert "image" not in rows.item(r, 4)


def test_images_keep_their_captions_by_colour(tmp_path):
    """Distinct colours: what the cache joins to a caption is the latent of the image that it describes."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "black": (0,) * 3}
    (tmp_path / "images").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(f"all {name}")
    data = FolderDataset(FolderConfig(path=str(tmp_path / "images"), size=8, val_fraction=0.0), "train")
    rows = CachedLatents(data, opened(tmp_path / "cache", data, config=LatentCacheConfig(shard_size=2)))
    for batch in loader.batches(rows, 0, 4, [range(4)], 0, 10):
        for caption, mean in zip(batch["caption"], batch["mean"]):
            assert ((mean[:, 0, 0] + 1) * 127.5).round().tolist() == list(colours[caption.removeprefix("all ")])


# ---- bad images


def test_bad_images_leave_rows_that_are_never_used(tmp_path):
    data = Images(10, bad=(0, 4, 5, 6, 7, 9))  # a chunk, a shard and the last row have none that can be read
    made = opened(tmp_path, data)
    rows = CachedLatents(data, made)
    for r in data.bad:
        assert not made.entry(r)["ok"]
        with pytest.raises(BadImage, match="is torn"):
            rows.item(r, 0)
    batches = list(loader.batches(rows, 0, 4, [range(4)], 0, 12))
    assert {caption.split(",")[0] for b in batches for caption in b["caption"]} == {f"image {i}" for i in (1, 2, 3, 8)}
    assert {id for b in batches for id, _ in b["bad"]} == {f"a-{i}" for i in data.bad}
    assert np.isfinite(made.statistics()[1]).all()


def test_a_image_that_was_mended_is_still_not_used(tmp_path):
    made = opened(tmp_path, Images(5, bad=(1,)))
    with pytest.raises(BadImage, match="when the latent cache was created"):
        CachedLatents(Images(5), made).item(1, 0)


def test_a_cache_of_bad_images_only_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of the images can be read"):
        opened(tmp_path, Images(5, bad=range(5))).statistics()


# ---- made, completed, refused


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_a_cache_that_is_there_is_used(tmp_path):
    opened(tmp_path, Images())
    encode = Encoder()
    opened(tmp_path, Images(), encode, info=pytest.fail)
    assert encode.sizes == []


def test_an_interrupted_cache_goes_on_with_what_is_missing(tmp_path):
    opened(tmp_path / "whole", Images())

    class Killed(Exception):
        pass

    def killed(batch):
        if killed.left == 0:
            raise Killed
        killed.left -= 1
        return Encoder()(batch)

    killed.left = 3  # one shard is two batches: 3 and 1
    with pytest.raises(Killed):
        opened(tmp_path / "cache", Images(), killed)
    assert list(shards(tmp_path / "cache")) == ["shard_00000.safetensors"]
    data, encode = Images(), Encoder()
    said = []
    opened(tmp_path / "cache", data, encode, info=said.append)
    assert sorted(data.asked) == list(range(4, 10)) and sum(encode.sizes) == 6
    assert "2 of 3 shards are missing" in said[0]
    assert shards(tmp_path / "cache") == shards(tmp_path / "whole")


def test_a_shard_that_was_deleted_is_made_anew(tmp_path):
    opened(tmp_path, Images())
    before = shards(tmp_path)
    (tmp_path / "shard_00001.safetensors").unlink()
    data = Images()
    opened(tmp_path, data)
    assert sorted(data.asked) == [4, 5, 6, 7] and shards(tmp_path) == before


@pytest.mark.parametrize("change, words", [
    ({"weights": "others"}, "another autoencoder"),
    ({"data": Images(10, name="b")}, "another data"),
    ({"config": LatentCacheConfig(shard_size=4, copies=2)}, "another copies"),
    ({"config": LatentCacheConfig(shard_size=5)}, "another shard_size"),
])  # fmt: skip
def test_a_cache_of_something_else_is_refused_with_the_reason(tmp_path, change, words):
    opened(tmp_path, Images())
    before = shards(tmp_path) | {"manifest": (tmp_path / "manifest.json").read_bytes()}
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **({"data": Images()} | change))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) and "cache.path" in str(caught.value)
    assert shards(tmp_path) | {"manifest": (tmp_path / "manifest.json").read_bytes()} == before


def test_an_unfinished_cache_of_something_else_is_refused(tmp_path):
    opened(tmp_path, Images())
    (tmp_path / "shard_00001.safetensors").unlink()
    with pytest.raises(UserError, match="another autoencoder"):
        opened(tmp_path, Images(), weights="others")


def test_a_row_of_another_image_is_refused(tmp_path):
    """Should the fingerprint ever miss a change of order, the id of the row does not."""
    made = opened(tmp_path, Images())
    with pytest.raises(UserError, match="belongs to another image than b-3"):
        CachedLatents(Images(name="b"), made).item(3, 0)


@pytest.mark.parametrize("harm", ["empty", "cut head", "cut body", "garbled head", "long head"])
def test_a_damaged_shard_is_named(tmp_path, harm):
    opened(tmp_path, Images())
    path = tmp_path / "shard_00001.safetensors"
    content = path.read_bytes()
    path.write_bytes({
        "empty": b"", "cut head": content[:20], "cut body": content[:-8],
        "garbled head": content[:8] + b"\xff" * 40 + content[48:], "long head": b"\xff" * 7 + b"\x7f" + content[8:],
    }[harm])  # fmt: skip
    with pytest.raises(UserError, match="shard_00001.safetensors is damaged.*delete it and start again"):
        opened(tmp_path, Images()).entry(4)  # its first
    path.unlink()
    opened(tmp_path, Images())
    assert path.read_bytes() == content


def test_a_damaged_manifest_is_named(tmp_path):
    opened(tmp_path, Images())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        opened(tmp_path, Images())


def test_running_out_of_memory_halves_the_batch(tmp_path):
    encode = Encoder(limit=2)
    opened(tmp_path / "small", Images(), encode, LatentCacheConfig(shard_size=100, batch_size=9))
    assert encode.sizes == [9, 4, 2, 2, 2, 2, 2]
    opened(tmp_path / "large", Images(), Encoder(), LatentCacheConfig(shard_size=100, batch_size=9))
    assert shards(tmp_path / "small") == shards(tmp_path / "large")
    with pytest.raises(torch.OutOfMemoryError):
        opened(tmp_path / "none", Images(), Encoder(limit=0))


def test_moments_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(UserError, match="mean that is not finite.*images a-0 to a-2"):
        opened(tmp_path, Images(), lambda batch: (loader.images(batch) * np.nan, None))


def test_ranks_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "barrier", lambda world: None)  # one after the other, as if together
    opened(tmp_path / "whole", Images())
    monkeypatch.setattr("latentdiff.data.latent_cache.LatentCache", lambda *_: None)
    asked = []
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False if path.name.startswith("shard") else path.is_file())
    for rank in (0, 1):
        data = Images()
        opened(tmp_path / "cache", data, world=World(rank, 2, torch.device("cpu")))
        asked.append(sorted(data.asked))
    assert asked == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
    assert shards(tmp_path / "cache") == shards(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the latent cache"):
        opened(tmp_path / "file" / "cache", Images())


def test_the_manifest_says_what_the_rows_depend_on(tmp_path):
    opened(tmp_path, Images())
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "autoencoder": "weights", "data": "images-a-10", "copies": 1, "entries": 10, "shard_size": 4,
    }  # fmt: skip


def test_rows_can_be_sent_to_a_worker_that_is_not_forked(tmp_path):
    rows = CachedLatents(Images(), open_cache(tmp_path, SMALL, Images(), "weights", Encoder(), SINGLE_PROCESS, quiet))
    sent = pickle.loads(pickle.dumps(rows))
    for r in (0, 7):
        ours, theirs = rows.item(r, 3), sent.item(r, 3)
        assert np.array_equal(ours.pop("mean"), theirs.pop("mean"))
        assert np.array_equal(ours.pop("logvar"), theirs.pop("logvar")) and ours == theirs
