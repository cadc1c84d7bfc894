"""Images of every mode are converted to RGB, crops are described by their parameters, bad files raise a reason."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentdiff.config import UserError
from latentdiff.data.image import (
    EXTENSIONS,
    BadImage,
    BadImageList,
    CropParams,
    check_header,
    choose_crop,
    open_image,
    resize_and_crop,
)

NASTY = Path(os.environ.get("LATENTDIFF_DATA", "data")) / "nasty"
needs_nasty = pytest.mark.skipif(not NASTY.exists(), reason=f"needs {NASTY} (LATENTDIFF_DATA)")


def save_and_open(image: Image.Image, format: str, **options) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return np.array(open_image(file))


def scene(height: int = 8, width: int = 12) -> Image.Image:
    """An image whose pixels all differ, so that every rotation and crop can be recognised."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 2 * 90], axis=2).astype(np.uint8))


def ramp(top: float, dtype: type) -> np.ndarray:
    return np.linspace(0, top, 256).reshape(16, 16).astype(dtype)


GRAY = np.arange(256).reshape(16, 16)  # the expected 8-bit values of each ramp


def test_transparent_pixels_are_blended_with_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    image.putpixel((0, 0), (0, 0, 0, 0))
    pixels = save_and_open(image, "PNG")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [255, 127, 127]


def test_palette_gray_and_one_bit_images_are_converted_with_transparent_colours_as_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert save_and_open(palette, "PNG", transparency=0).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert save_and_open(palette, "PNG").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert save_and_open(Image.new("L", (1, 1), 7), "PNG").tolist() == [[[7, 7, 7]]]
    assert save_and_open(Image.new("L", (1, 1), 7), "PNG", transparency=7).tolist() == [[[255, 255, 255]]]
    assert save_and_open(Image.new("1", (1, 1), 1), "PNG").tolist() == [[[255, 255, 255]]]
    assert save_and_open(Image.new("LA", (1, 1), (7, 0)), "PNG").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    "image, format",
    [
        (Image.fromarray(ramp(65535, np.uint16)), "PNG"),
        (Image.fromarray(ramp(65535, np.uint16)), "TIFF"),
        (Image.fromarray(ramp(65535, np.int32)), "TIFF"),
        (Image.fromarray(ramp(1, np.float32)), "TIFF"),
        (Image.fromarray(ramp(255, np.float32)), "TIFF"),
    ],
)
def test_16_bit_32_bit_and_float_gray_is_scaled_to_8_bits(image, format):
    pixels = save_and_open(image, format)
    assert np.array_equal(pixels[:, :, 0], GRAY) and np.array_equal(pixels[:, :, 2], GRAY)


def test_nan_and_negative_values_do_not_change_the_scale_of_a_float_image():
    values = ramp(1, np.float32)
    values[0, 0], values[0, 1] = np.nan, -3
    assert np.array_equal(save_and_open(Image.fromarray(values), "TIFF")[1:, :, 0], GRAY[1:])


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colour_spaces_are_converted_to_the_same_colours(mode):
    image = scene()
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        converted = image.convert(mode)
    pixels = save_and_open(converted, "TIFF", **({"compression": "raw"} if mode == "YCbCr" else {}))
    assert np.abs(pixels.astype(int) - np.array(image)).mean() <= 3  # 8-bit LAB is coarse for dark blue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = save_and_open(scene(), "PNG", exif=exif)
    file = io.BytesIO()
    scene().save(file, "PNG", exif=exif)
    assert np.array_equal(pixels, np.array(ImageOps.exif_transpose(Image.open(file))))
    assert np.array_equal(pixels, np.array(scene())) == (orientation == 1)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert save_and_open(frames[0], "GIF", save_all=True, append_images=frames[1:])[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an image"),
        (b"<html>", "not an image"),
        (None, "No such file"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
    ],
)
def test_an_unreadable_file_raises_a_reason_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    for function in (open_image, check_header):
        with pytest.raises(BadImage, match=message) as error:
            function(path)
        assert str(error.value) and "\n" not in str(error.value)


def test_a_truncated_image_has_a_valid_header_but_cannot_be_decoded(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    check_header(path)
    with pytest.raises(BadImage, match="truncated"):
        open_image(path)


@needs_nasty
def test_every_difficult_file_is_read_or_refused_as_its_manifest_states(recwarn):
    entries = [json.loads(line) for line in (NASTY / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert len(entries) == 120
    mismatches = []
    for entry in entries:
        try:
            image = open_image(NASTY / entry["file_name"])
            transposed = (entry["exif_orientation"] or 1) > 4 and entry["format"] != "TIFF"  # TIFF: Pillow applies it
            size = (entry["width"], entry["height"])[:: -1 if transposed else 1]
            outcome = "ok" if image.mode == "RGB" and image.size == size else f"{image.mode} {image.size}, not {size}"
        except BadImage as error:
            outcome = "refused"
            assert "\n" not in str(error) and str(NASTY) not in str(error)
        if outcome != ("ok" if entry["pillow"] == "ok" else "refused"):
            mismatches.append((entry["file_name"], entry["pillow"], outcome))
    assert not mismatches


@needs_nasty
def test_a_photograph_in_several_formats_and_orientations_gives_the_same_pixels():
    def pixels(name: str) -> np.ndarray:
        return np.array(open_image(NASTY / "files" / name)).astype(float)

    hopper = pixels("hopper.jpg")
    rotated = [f"hopper_orientation_{i}.jpg" for i in range(2, 9)]
    for name in ("hopper.Lab.tif", "hopper.tif", "hopper.gif", "hopper.webp", "avif_hopper.avif", *rotated):
        assert np.abs(pixels(name) - hopper).mean() < 6, name
    gray = pixels("hopper_gray.jpg")
    assert np.abs(pixels("hopper_16bit.pgm") - gray).mean() < 6
    assert np.abs(pixels("made_cmyk_photo.jpg") - pixels("chelsea.jpg")).mean() < 6
    assert np.abs(gray - hopper).mean() > 15  # the distance of a different image


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (8, 8), (100, 9), (3, 2000), (1, 1)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_crop_is_filled_from_inside_the_image(size, crop):
    for key in range(5):
        pixels, view = resize_and_crop(Image.new("RGB", size, (9, 9, 9)), 8, 6, crop, key, flip=True)
        assert pixels.shape == (8, 6, 3) and pixels.dtype == np.uint8 and (pixels == 9).all()
        assert view.top >= 0 and view.top + 8 <= size[1] * view.scale + 1e-6
        assert view.left >= 0 and view.left + 6 <= size[0] * view.scale + 1e-6


def test_a_crop_at_scale_one_copies_pixels_and_is_a_function_of_the_key():
    image = scene(8, 12)
    pixels, view = resize_and_crop(image, 8, 8, "center", 0, flip=False)
    assert view == CropParams(1.0, 0, 2, 8, 8, False)
    assert np.array_equal(pixels, np.array(image)[:, 2:10])
    views = [choose_crop(image.size, 8, 8, "random", key, True) for key in range(100)]
    assert views == [choose_crop(image.size, 8, 8, "random", key, True) for key in range(100)]
    assert {view.left for view in views} == {0, 1, 2, 3, 4}
    assert [view.flip for view in views] == [key % 2 == 1 for key in range(100)]  # the lowest bit: copies alternate
    assert not choose_crop(image.size, 8, 8, "random", 1, False).flip
    for view in views[:10]:
        crop = np.array(image)[:, view.left : view.left + 8]
        assert np.array_equal(np.array(view.apply(image)), crop[:, ::-1] if view.flip else crop)


def test_downscaling_is_antialiased_for_images_and_nearest_for_class_maps():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    pixels, view = resize_and_crop(Image.fromarray(stripes).convert("RGB"), 16, 16, "center", 0, False)
    assert np.abs(pixels[2:-2, 2:-2].astype(int) - 127).max() <= 3
    classes = np.array(view.apply(Image.fromarray(stripes), Image.Resampling.NEAREST))
    assert set(np.unique(classes)) <= {0, 255}


def test_common_extensions_are_images_and_formats_without_a_decoder_are_not():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"} <= EXTENSIONS
    assert not {".pdf", ".eps", ".mpg", ".txt", ".h5"} & EXTENSIONS


def test_bad_images_are_listed_once_and_too_many_stop_the_run(tmp_path):
    path = tmp_path / "bad_images.jsonl"
    bad = BadImageList(path, total=40, max_fraction=0.05)
    assert not path.exists()
    for _ in range(3):
        bad.add([("a.jpg", "is not an image")])
    bad.add([("b.jpg", "truncated")])
    with pytest.raises(UserError, match="3 of 40 images") as error:
        bad.add([("c.jpg", "too big")])
    assert "data.max_bad_fraction = 0.05" in str(error.value) and "b.jpg: truncated" in str(error.value)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_resumed_run_lists_no_image_twice_and_counts_only_images_that_are_still_bad(tmp_path):
    path = tmp_path / "bad_images.jsonl"
    BadImageList(path, 100, 0.05).add([("a.jpg", "is not an image")])
    path.write_text(path.read_text() + '{"id": "b.j')  # killed while writing a line
    bad = BadImageList(path, 100, 0.05)
    bad.add([("a.jpg", "is not an image")])
    bad.add([("d.jpg", "is not an image")])
    assert list(bad.bad) == ["a.jpg", "d.jpg"]
    assert sum("a.jpg" in line for line in path.read_text().splitlines()) == 1
    assert BadImageList(path, 100, 0.05).listed == {"a.jpg", "d.jpg"}


def lists_of_ranks(tmp_path: Path, monkeypatch, count: int, total: int, max_bad_fraction: float) -> list[BadImageList]:
    lists = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        lists.append(BadImageList(tmp_path / "bad_images.jsonl", total, max_bad_fraction))
    return lists


def test_each_rank_lists_bad_images_in_a_separate_file(tmp_path, monkeypatch):
    first, second = lists_of_ranks(tmp_path, monkeypatch, 2, 100, 0.5)
    for i in range(20):
        (first, second)[i % 2].add([(f"{i}.png", "truncated")])
    files = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert sorted(files) == ["bad_images.jsonl", "bad_images.rank1.jsonl"]
    ids = [json.loads(line)["id"] for lines in files.values() for line in lines]
    assert sorted(ids) == sorted(f"{i}.png" for i in range(20))


def test_bad_images_of_all_ranks_are_counted_together(tmp_path, monkeypatch):
    first, second = lists_of_ranks(tmp_path, monkeypatch, 2, 100, 0.05)
    for i in range(3):
        first.add([(f"a{i}.png", "truncated")])
    for i in range(2):
        second.add([(f"b{i}.png", "truncated")])
    second.add([("a0.png", "truncated")])  # listed by both ranks, counted once
    with pytest.raises(UserError, match="6 of 100 images cannot be used"):
        second.add([("b2.png", "truncated")])


def test_an_incomplete_line_of_the_list_is_ignored(tmp_path, monkeypatch):
    first, second = lists_of_ranks(tmp_path, monkeypatch, 2, 10, 1.0)
    first.add([("a.png", "truncated")])
    with open(tmp_path / "bad_images.jsonl", "a") as file:
        file.write('{"id": "half')
    second.add([("b.png", "truncated")])
    assert sorted(second.bad) == ["a.png", "b.png"]
    (resumed,) = lists_of_ranks(tmp_path, monkeypatch, 1, 10, 1.0)
    assert resumed.listed == {"a.png"} and (tmp_path / "bad_images.jsonl").read_text().endswith("}\n")
