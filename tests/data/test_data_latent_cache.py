"""The latent cache: content, bad images, creation, completion, and refusal of one that does not match."""

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
CONFIG = LatentCacheConfig(shard_size=4, batch_size=3)


def discard(message):
    """Replace the logger."""


class Images:
    """Item i is a random image; the lowest bit of the key flips it, the other bits shift its colours."""

    def __init__(self, n=10, bad=(), name="a"):
        self.n, self.bad, self.name, self.calls = n, set(bad), name, []

    def __len__(self):
        return self.n

    def id(self, i):
        return f"{self.name}-{i}"

    def record(self, i, key):
        return {"id": self.id(i), "caption": f"image {i}, {'second' if key % 2 else 'first'} wording"}

    def item(self, i, key):
        self.calls.append(i)
        if i in self.bad:
            raise BadImage("is truncated")
        image = np.random.default_rng(i).integers(0, 200, (4, 6, 3), dtype=np.uint8) + np.uint8(key // 2 % 50)
        return self.record(i, key) | {"image": image[:, ::-1] if key & 1 else image}

    def fingerprint(self):
        return f"images-{self.name}-{self.n}"


class Encoder:
    """Moments of an image: the mean is 2 x 2 average pooling, and the log-variance is a function of it."""

    def __init__(self, limit=10**9, logvar=True):
        self.limit, self.logvar, self.sizes = limit, logvar, []

    def __call__(self, batch):
        x = loader.images(batch)
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        mean = torch.nn.functional.avg_pool2d(x, 2)
        return mean, mean * 0.5 - 1 if self.logvar else None


def open_test_cache(folder, data, encode=None, config=CONFIG, weights="weights", world=SINGLE_PROCESS, info=discard):
    return open_cache(folder, config, data, weights, encode or Encoder(), world, info)


def image_of(data, i, key):
    """Image i as float [1, 3, H, W] in [-1, 1]."""
    return loader.images({"image": torch.from_numpy(data.item(i, key)["image"].copy())[None]})


# ---- content


def test_entries_are_the_moments_of_their_images(tmp_path):
    data = Images()
    cache = open_test_cache(tmp_path, data)
    assert len(cache) == 10 and len(list(tmp_path.glob("shard_*"))) == 3
    for i in range(10):
        mean, logvar = Encoder()({"image": torch.from_numpy(data.item(i, entry_key(data.id(i), 0))["image"])[None]})
        entry = cache.entry(i)
        assert np.array_equal(entry["mean"], mean[0].numpy()) and np.array_equal(entry["logvar"], logvar[0].numpy())
        assert entry["ok"] and entry["key"] == entry_key(data.id(i), 0)


def test_an_autoencoder_without_log_variance_gives_a_cache_without_it(tmp_path):
    cache = open_test_cache(tmp_path, Images(), Encoder(logvar=False))
    assert "logvar" not in cache.entry(0) and "logvar" not in CachedLatents(Images(), cache).item(0, 0)


def test_statistics_equal_those_of_posterior_samples(tmp_path):
    data = Images(10, bad=(2,))
    mean, variance = open_test_cache(tmp_path, data).statistics()
    x = torch.cat([image_of(data, i, entry_key(data.id(i), 0)) for i in range(10) if i != 2])
    m = torch.nn.functional.avg_pool2d(x, 2).double()  # means of the posteriors; their log-variance is m / 2 - 1
    assert mean == pytest.approx(m.mean((0, 2, 3)).numpy(), abs=1e-6)
    expected = m.var((0, 2, 3), correction=0) + (m * 0.5 - 1).exp().mean((0, 2, 3))
    assert variance == pytest.approx(expected.numpy(), rel=1e-5)
    samples = m + (m * 0.25 - 0.5).exp() * torch.randn(2000, *m.shape, generator=torch.Generator().manual_seed(0))
    assert variance == pytest.approx(samples.var((0, 1, 3, 4)).numpy(), rel=0.02)


def test_copies_have_different_keys_and_alternate_between_flipped_and_not(tmp_path):
    data = Images(3)
    cache = open_test_cache(tmp_path, data, config=LatentCacheConfig(copies=4, shard_size=5, batch_size=3))
    assert len(cache) == 12
    for i in range(3):
        keys = [cache.entry(4 * i + copy)["key"] for copy in range(4)]
        assert [key & 1 for key in keys] == [0, 1, 0, 1]
        assert keys[0] >> 1 == keys[1] >> 1 != keys[2] >> 1  # each crop is followed by its flipped version
        for copy, key in enumerate(keys):
            mean = torch.nn.functional.avg_pool2d(image_of(data, i, key), 2)[0]
            assert np.array_equal(cache.entry(4 * i + copy)["mean"], mean.numpy())
    original, flipped = (cache.entry(copy)["mean"] for copy in (0, 1))
    assert np.allclose(original[:, :, ::-1], flipped) and not np.array_equal(original, flipped)


def test_flipped_copies_of_a_real_folder_are_encoded_from_the_flipped_image(tmp_path):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    (tmp_path / "images").mkdir()
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "images" / "a.png")
    data = FolderDataset(FolderConfig(path=str(tmp_path / "images"), size=8, flip=True), "train")

    def asymmetric_encode(batch):  # the flipped latent is not the latent of the flipped image
        x = loader.images(batch)
        return x[..., ::2, ::2], None

    cache = open_test_cache(tmp_path / "cache", data, asymmetric_encode, LatentCacheConfig(copies=2))
    original, flipped = (cache.entry(copy)["mean"] for copy in (0, 1))
    assert np.allclose(original[0, 0], gray[0, ::2] / 127.5 - 1, atol=1e-6)
    assert np.allclose(flipped[0, 0], gray[0, ::-1][::2] / 127.5 - 1, atol=1e-6)
    assert not np.allclose(flipped, original[:, :, ::-1])


def test_captions_are_joined_by_id_and_chosen_by_the_key_of_the_item(tmp_path):
    data = Images(5)
    config = LatentCacheConfig(copies=2, shard_size=4, batch_size=3)
    latents = CachedLatents(data, open_test_cache(tmp_path, data, config=config))
    assert len(latents) == 10
    for k in range(10):
        assert latents.id(k) == f"a-{k // 2}"
        assert latents.item(k, 4)["caption"] == f"image {k // 2}, first wording"
        assert latents.item(k, 5)["caption"] == f"image {k // 2}, second wording"
        assert "image" not in latents.item(k, 4)


def test_captions_belong_to_the_latents_of_their_images(tmp_path):
    """Each image has one colour, named by its caption, which the latent of the batch must have."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "black": (0,) * 3}
    (tmp_path / "images").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(f"all {name}")
    data = FolderDataset(FolderConfig(path=str(tmp_path / "images"), size=8, val_fraction=0.0), "train")
    latents = CachedLatents(data, open_test_cache(tmp_path / "cache", data, config=LatentCacheConfig(shard_size=2)))
    for batch in loader.batches(latents, 0, 4, [range(4)], 0, 10):
        for caption, mean in zip(batch["caption"], batch["mean"]):
            assert ((mean[:, 0, 0] + 1) * 127.5).round().tolist() == list(colours[caption.removeprefix("all ")])


# ---- bad images


def test_entries_of_bad_images_are_never_used(tmp_path):
    data = Images(10, bad=(0, 4, 5, 6, 7, 9))  # among them a whole batch, a whole shard and the last entry
    cache = open_test_cache(tmp_path, data)
    latents = CachedLatents(data, cache)
    for i in data.bad:
        assert not cache.entry(i)["ok"]
        with pytest.raises(BadImage, match="is truncated"):
            latents.item(i, 0)
    batches = list(loader.batches(latents, 0, 4, [range(4)], 0, 12))
    assert {caption.split(",")[0] for b in batches for caption in b["caption"]} == {f"image {i}" for i in (1, 2, 3, 8)}
    assert {id for b in batches for id, _ in b["bad"]} == {f"a-{i}" for i in data.bad}
    assert np.isfinite(cache.statistics()[1]).all()


def test_an_image_repaired_after_caching_is_still_skipped(tmp_path):
    cache = open_test_cache(tmp_path, Images(5, bad=(1,)))
    with pytest.raises(BadImage, match="when the latent cache was created"):
        CachedLatents(Images(5), cache).item(1, 0)


def test_a_cache_with_only_bad_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of the images can be read"):
        open_test_cache(tmp_path, Images(5, bad=range(5))).statistics()


# ---- creation, completion, refusal


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_an_existing_cache_is_reused(tmp_path):
    open_test_cache(tmp_path, Images())
    encode = Encoder()
    open_test_cache(tmp_path, Images(), encode, info=pytest.fail)
    assert encode.sizes == []


def test_only_the_missing_shards_of_an_interrupted_cache_are_encoded(tmp_path):
    open_test_cache(tmp_path / "complete", Images())

    class Interrupted(Exception):
        pass

    def interrupted_encode(batch):
        if interrupted_encode.remaining == 0:
            raise Interrupted
        interrupted_encode.remaining -= 1
        return Encoder()(batch)

    interrupted_encode.remaining = 3  # batches; the first shard takes two, of 3 and 1 images
    with pytest.raises(Interrupted):
        open_test_cache(tmp_path / "cache", Images(), interrupted_encode)
    assert list(shards(tmp_path / "cache")) == ["shard_00000.safetensors"]
    data, encode = Images(), Encoder()
    messages = []
    open_test_cache(tmp_path / "cache", data, encode, info=messages.append)
    assert sorted(data.calls) == list(range(4, 10)) and sum(encode.sizes) == 6
    assert "2 of 3 shards are missing" in messages[0]
    assert shards(tmp_path / "cache") == shards(tmp_path / "complete")


def test_a_deleted_shard_is_encoded_again(tmp_path):
    open_test_cache(tmp_path, Images())
    before = shards(tmp_path)
    (tmp_path / "shard_00001.safetensors").unlink()
    data = Images()
    open_test_cache(tmp_path, data)
    assert sorted(data.calls) == [4, 5, 6, 7] and shards(tmp_path) == before


@pytest.mark.parametrize("change, message", [
    ({"weights": "other weights"}, "another autoencoder"),
    ({"data": Images(10, name="b")}, "another data"),
    ({"config": LatentCacheConfig(shard_size=4, copies=2)}, "another copies"),
    ({"config": LatentCacheConfig(shard_size=5)}, "another shard_size"),
])  # fmt: skip
def test_a_cache_of_other_weights_data_or_settings_is_refused_with_the_reason(tmp_path, change, message):
    open_test_cache(tmp_path, Images())
    before = shards(tmp_path) | {"manifest": (tmp_path / "manifest.json").read_bytes()}
    with pytest.raises(UserError) as error:
        open_test_cache(tmp_path, **({"data": Images()} | change))
    assert message in str(error.value) and str(tmp_path) in str(error.value) and "cache.path" in str(error.value)
    assert shards(tmp_path) | {"manifest": (tmp_path / "manifest.json").read_bytes()} == before


def test_an_incomplete_cache_of_other_weights_is_refused(tmp_path):
    open_test_cache(tmp_path, Images())
    (tmp_path / "shard_00001.safetensors").unlink()
    with pytest.raises(UserError, match="another autoencoder"):
        open_test_cache(tmp_path, Images(), weights="other weights")


def test_an_entry_of_another_image_is_refused(tmp_path):
    """The id stored in an entry detects a change of order that the fingerprint misses."""
    cache = open_test_cache(tmp_path, Images())
    with pytest.raises(UserError, match="belongs to another image than b-3"):
        CachedLatents(Images(name="b"), cache).item(3, 0)


@pytest.mark.parametrize("damage", ["empty", "truncated header", "truncated data", "invalid header", "long header"])
def test_the_error_for_a_damaged_shard_names_it(tmp_path, damage):
    open_test_cache(tmp_path, Images())
    path = tmp_path / "shard_00001.safetensors"
    content = path.read_bytes()
    path.write_bytes({
        "empty": b"", "truncated header": content[:20], "truncated data": content[:-8],
        "invalid header": content[:8] + b"\xff" * 40 + content[48:], "long header": b"\xff" * 7 + b"\x7f" + content[8:],
    }[damage])  # fmt: skip
    with pytest.raises(UserError, match="shard_00001.safetensors is damaged.*delete it and start again"):
        open_test_cache(tmp_path, Images()).entry(4)  # the first of the shard
    path.unlink()
    open_test_cache(tmp_path, Images())
    assert path.read_bytes() == content


def test_the_error_for_a_damaged_manifest_names_it(tmp_path):
    open_test_cache(tmp_path, Images())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        open_test_cache(tmp_path, Images())


def test_running_out_of_memory_halves_the_batch(tmp_path):
    encode = Encoder(limit=2)
    open_test_cache(tmp_path / "small", Images(), encode, LatentCacheConfig(shard_size=100, batch_size=9))
    assert encode.sizes == [9, 4, 2, 2, 2, 2, 2]
    open_test_cache(tmp_path / "large", Images(), Encoder(), LatentCacheConfig(shard_size=100, batch_size=9))
    assert shards(tmp_path / "small") == shards(tmp_path / "large")
    with pytest.raises(torch.OutOfMemoryError):
        open_test_cache(tmp_path / "none", Images(), Encoder(limit=0))


def test_moments_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(UserError, match="mean that is not finite.*images a-0 to a-2"):
        open_test_cache(tmp_path, Images(), lambda batch: (loader.images(batch) * np.nan, None))


def test_each_rank_encodes_different_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "barrier", lambda world: None)  # the ranks run one after the other
    open_test_cache(tmp_path / "complete", Images())
    monkeypatch.setattr("latentdiff.data.latent_cache.LatentCache", lambda *_: None)
    encoded = []
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False if path.name.startswith("shard") else path.is_file())
    for rank in (0, 1):
        data = Images()
        open_test_cache(tmp_path / "cache", data, world=World(rank, 2, torch.device("cpu")))
        encoded.append(sorted(data.calls))
    assert encoded == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
    assert shards(tmp_path / "cache") == shards(tmp_path / "complete")


def test_a_folder_that_cannot_be_written_raises_a_user_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write the latent cache"):
        open_test_cache(tmp_path / "file" / "cache", Images())


def test_the_manifest_contains_everything_that_the_entries_depend_on(tmp_path):
    open_test_cache(tmp_path, Images())
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "autoencoder": "weights", "data": "images-a-10", "copies": 1, "entries": 10, "shard_size": 4,
    }  # fmt: skip


def test_cached_latents_can_be_pickled_for_spawned_workers(tmp_path):
    latents = CachedLatents(Images(), open_test_cache(tmp_path, Images()))
    copy = pickle.loads(pickle.dumps(latents))
    for k in (0, 7):
        expected, item = latents.item(k, 3), copy.item(k, 3)
        assert np.array_equal(expected.pop("mean"), item.pop("mean"))
        assert np.array_equal(expected.pop("logvar"), item.pop("logvar")) and expected == item
