"""ImageFiles: every kind of image file is read as a viewer shows it, or refused in one line."""

import colorsys
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from lit_merge import MergeError, MergeWarning
from lit_merge.data.images.decoding import decode, to_rgb
from lit_merge.data.images.files import ImageFiles, class_names, find_images, readable
from lit_merge.data.images.geometry import Geometry


def read(path: Path, size: int = 16) -> torch.Tensor:
    return ImageFiles([path], size).read([0])[0]


def gradient(mode: str = "L") -> Image.Image:
    """16 × 16, from black at the left to white at the right."""
    return Image.fromarray(np.tile(np.arange(0, 256, 17, dtype=np.uint8), (16, 1))).convert(mode)


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(MergeError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def broken_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    content = whole.read_bytes()
    files = {
        "truncated": content[: len(content) // 2],
        "header only": content[:20],
        "text": b"this is no image",
        "empty": b"",
    }
    paths = {}
    for kind, bytes_ in files.items():
        paths[kind] = folder / f"{kind.replace(' ', '_')}.png"
        paths[kind].write_bytes(bytes_)
    return paths


@pytest.mark.parametrize("kind", ["truncated", "header only", "text", "empty"])
def test_broken_image_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = broken_files(tmp_path)[kind]
    refused(lambda: read(path), str(path), "cannot be read as an image", "mend or remove it")


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    refused(lambda: read(path), str(path), "truncated")


def test_image_that_vanished(tmp_path: Path) -> None:
    refused(lambda: read(tmp_path / "gone.png"), "gone.png", "no such file")


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="read in another way here")
def test_an_image_that_is_overwritten_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, preadv = tmp_path / "a.png", os.preadv
    gradient().save(path)

    def racing(descriptor: int, buffers: Any, position: int) -> int:
        count = preadv(descriptor, buffers, position)
        os.utime(path)
        return count

    os.utime(path, (1, 1))
    assert read(path).shape == (3, 16, 16)
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", racing)
        refused(lambda: read(path), "a.png: could not read it: the file was changed while it was used")
    assert read(path).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("RGBA", "png")]
)
def test_gray_gradient_reads_the_same_in_every_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    gradient("RGB").convert(mode).save(path)
    image = read(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 16, 16)
    expected = torch.arange(0, 256, 17).expand(3, 16, 16)
    # A palette has the colours of the web, 51 apart.
    assert (image.long() - expected).abs().max() <= (26 if mode == "P" else 1)


def test_black_and_white_image(tmp_path: Path) -> None:
    Image.fromarray(np.tile([0, 255], (16, 8)).astype(np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, 0].tolist() == [0, 255] * 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.tile(np.arange(0, 256, 17, dtype=np.uint16) * 257, (16, 1))
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert torch.equal(read(tmp_path / f"a.{suffix}").long(), torch.arange(0, 256, 17).expand(3, 16, 16))


def test_colours_keep_their_order(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[:, 3, 3].tolist() == [200, 100, 50]


def test_transparent_palette_reads_without_a_warning(tmp_path: Path) -> None:
    image = gradient("RGB").quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes([0] * 8 + [255] * 8))
    assert (read(tmp_path / "a.png").long() - torch.arange(0, 256, 17).expand(3, 16, 16)).abs().max() <= 8


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    stored = gradient("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° clockwise to view
    stored.save(tmp_path / "a.png", exif=exif)
    image = read(tmp_path / "a.png")
    # What was dark at the left is dark at the top.
    assert torch.equal(image[0, :, 0].long(), torch.arange(0, 256, 17))
    assert torch.equal(image[0, :, 0], image[0, :, 15])


def test_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png", 16)
    assert image.shape == (3, 16, 16)
    assert (image[:, :, 2:-2] > 240).all()


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif").max() == 0


def png(rows: np.ndarray, colour_type: int, bits: int) -> bytes:
    """A PNG of big-endian samples (H, W, channels), which Pillow does not write with 16 bits and colours."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, colour_type, 0, 0, 0)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in parts)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_with_colours_or_transparency(tmp_path: Path, colour_type: int, channels: int) -> None:
    deep = (np.tile(np.arange(0, 256, 17), (16, 1)) * 257).astype(">u2")
    rows = np.repeat(deep[:, :, None], channels, 2)
    if colour_type == 2:
        rows[:, :, 1] = 0x1234
    (tmp_path / "a.png").write_bytes(png(rows, colour_type, 16))
    image = read(tmp_path / "a.png")
    assert torch.equal(image[0].long(), torch.arange(0, 256, 17).expand(16, 16))
    assert torch.equal(image[2], image[0])
    assert (image[1] == (0x12 if colour_type == 2 else image[0])).all()


def test_dark_sixteen_bits_are_not_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 3000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == 3000 // 256).all()


@pytest.mark.parametrize("values", [np.full((16, 16), 0.5, np.float32), np.full((16, 16), 70_000, np.int32)])
def test_values_of_an_unknown_range(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    refused(lambda: read(tmp_path / "a.tif"), str(tmp_path / "a.tif"), "black and white are not known")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_other_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert read(tmp_path / f"a.{suffix}").max() == 0


def test_inks_of_a_jpeg_are_not_inverted(tmp_path: Path) -> None:
    """Adobe's CMYK files hold 255 − ink; Pillow writes them so, with Adobe's marker."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    content = (tmp_path / "red.jpg").read_bytes()
    assert b"Adobe" in content
    red, green, blue = read(tmp_path / "red.jpg")[:, 8, 8].tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_exif_rotation_of_other_files(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.repeat(np.array([20, 230], np.uint8), 8)[:, None].repeat(16, 1)).convert("RGB").save(
        tmp_path / f"a.{suffix}", exif=exif
    )
    image = read(tmp_path / f"a.{suffix}")[0].float()
    assert image[:6].mean() > 200
    assert image[10:].mean() < 50


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    gradient("RGB").save(tmp_path / "a.bmp")
    for suffix in ("jpg", "png", "tif"):
        (tmp_path / f"a.{suffix}").write_bytes((tmp_path / "a.bmp").read_bytes())
        assert torch.equal(read(tmp_path / f"a.{suffix}")[0].long(), torch.arange(0, 256, 17).expand(16, 16))


@pytest.mark.parametrize("side", [9_600, 14_000])
def test_a_few_bytes_that_would_fill_the_memory(tmp_path: Path, side: int) -> None:
    """Pillow only warns of the smaller one."""
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 100_000
    refused(lambda: read(path), str(path), "more than 89,478,485 pixels", "remove it")


def test_a_text_that_would_fill_the_memory(tmp_path: Path) -> None:
    content = png(np.zeros((16, 16, 1), np.uint8), 0, 8)
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(70_000_000), 9)
    bomb = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "a.png").write_bytes(content[:33] + bomb + content[33:])
    refused(lambda: read(tmp_path / "a.png"), str(tmp_path / "a.png"), "cannot be read as an image")


def test_readable_files_in_their_order(tmp_path: Path) -> None:
    broken = broken_files(tmp_path)
    gradient().save(tmp_path / "a.png")
    paths = [*broken.values(), tmp_path / "a.png", tmp_path / "whole.png"]
    with pytest.warns(MergeWarning, match="4 of 6 images of task alpha cannot be read and are left out: ") as said:
        assert readable("alpha", ImageFiles(paths, 16)) == [4, 5]
    message = str(said[0].message)
    assert message.endswith(", …")
    assert [str(path) in message for path in broken.values()] == [True, True, True, False]
    with pytest.raises(MergeError, match="none of the 4 images of task alpha can be read, the first is") as error:
        readable("alpha", ImageFiles(list(broken.values()), 16))
    assert error.value.task == "alpha"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_squares_are_those_of_open_clip(resize_mode: Any, interpolation: Any) -> None:
    """To the bit: published numbers are of this geometry."""
    generator = np.random.default_rng(0)
    for width, height, size in ((173, 258, 224), (265, 17, 16), (50, 96, 32), (33, 32, 16), (8, 8, 32), (15, 200, 32)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = image
        steps = image_transform(size, is_train=False, resize_mode=resize_mode, interpolation=interpolation).transforms
        for step in steps[:-3]:  # what comes before RGB, a tensor, and the pixels' mean and deviation
            theirs = step(theirs)
        ours = Geometry(resize_mode, interpolation).square(image, size).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(theirs), ours), (width, height)


def test_the_middle_of_a_strip() -> None:
    values = np.zeros((1, 1_000_000, 3), np.uint8)
    values[:, 499_000:501_000] = 200
    assert Geometry().square(Image.fromarray(values), 224).unique().tolist() == [200]
    row = Geometry("longest").square(Image.fromarray(values), 224).amax((0, 2))
    assert row.nonzero().flatten().tolist() == [111]  # open_clip fails here: a side of no pixel
    assert row[111] > 0


def test_bytes_are_decoded_as_files_are(tmp_path: Path) -> None:
    broken = broken_files(tmp_path)
    whole = tmp_path / "whole.png"
    assert decode(whole.read_bytes(), "here").tobytes() == decode(whole).tobytes()
    for path in broken.values():
        refused(lambda: decode(path.read_bytes(), "row 7"), "row 7 cannot be read as an image")  # noqa: B023


def test_what_tells_files_from_each_other(tmp_path: Path) -> None:
    Image.effect_noise((20, 30), 90).save(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "b.bmp")
    files = ImageFiles([tmp_path / "a.png", tmp_path / "b.bmp"], 16)
    assert files.content(0) != files.content(1)
    assert files.lengths() == [path.stat().st_size for path in files.paths]
    assert files.pixels(0) == files.pixels(1)


def tiff(content: np.ndarray, bits: int, photometric: int, kind: int = 1, width: int = 16) -> bytes:
    """A grey TIFF of one strip, with what Pillow does not write: 12 bits, white at 0, signed numbers."""
    raw, order = content.tobytes(), ">" if content.dtype.byteorder == ">" else "<"
    tags = {256: width, 257: len(content), 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: len(content)}
    tags |= {279: len(raw), 339: kind}
    head = struct.pack(f"{order}I", 8 + len(raw)) + raw + struct.pack(f"{order}H", len(tags))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" if order == "<" else b"MM\0*") + head + entries + bytes(4)


DEEP = np.random.default_rng(0).integers(0, 1 << 16, (16, 16)).astype(np.uint16)


def near(content: bytes, expected: np.ndarray) -> bool:
    """Whether an image has these colours, (H, W) or (H, W, 3), but for rounding."""
    found = np.asarray(decode(content, "here")).astype(float)
    wanted = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    return bool(np.abs(found - wanted).max() <= 1)


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_grey_of_more_bits_is_scaled_by_what_the_file_says() -> None:
    deep, twelve = DEEP / 257, DEEP >> 4
    pairs = twelve.reshape(16, 8, 2)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], 2)
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000"):
        assert near(written(Image.fromarray(DEEP), kind), deep), kind
    assert near(tiff(DEEP, 16, 1), deep)
    assert near(tiff(DEEP.astype(">u2"), 16, 1), deep)
    assert near(tiff(DEEP, 16, 0), 255 - deep)
    assert near(tiff(packed.astype(np.uint8).reshape(16, 24), 12, 1), twelve / 4095 * 255)
    assert near(b"P5 16 16 1023\n" + (DEEP >> 6).astype(">u2").tobytes(), (DEEP >> 6) / 1023 * 255)
    colours = np.stack([DEEP, DEEP.T, DEEP[::-1]], 2)
    assert near(b"P6 16 16 65535\n" + colours.astype(">u2").tobytes(), colours / 257)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (DEEP.astype(np.int32) >> 8, 2),  # of 32 bits, however small
        (DEEP.astype(np.uint32), 1),
        ((DEEP >> 1).astype(np.int16), 2),
        ((DEEP / 65535).astype(np.float32), 3),
    ],
)
def test_numbers_without_a_white_are_refused(values: np.ndarray, kind: int) -> None:
    content = tiff(values, 8 * values.itemsize, 1, kind)
    refused(lambda: decode(content, "row 3"), "row 3 cannot be read", "black and white are not known")


def test_every_kind_of_colour_against_its_own_formula() -> None:
    draw = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    share = draw / 255
    rgb, alpha = draw[..., :3], draw[..., 3:]
    inks = 255 * (1 - share[..., :3]) * (1 - share[..., 3:])
    assert near(written(Image.fromarray(draw, "CMYK"), "TIFF"), inks)
    assert near(written(Image.fromarray(draw), "PNG"), rgb)
    grey = np.concatenate([rgb[..., :1], alpha], 2)
    assert near(written(Image.fromarray(grey), "PNG"), rgb[..., 0])
    palette = Image.fromarray(rgb).quantize(32)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    for options in ({}, {"transparency": 3}, {"transparency": bytes(range(32))}):
        assert near(written(palette, "PNG", **options), colours)
    assert np.array_equal(np.asarray(to_rgb(palette.convert("PA"))), colours)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        assert near(written(Image.fromarray(rgb[..., 0] > 127), kind), 255 * (rgb[..., 0] > 127))
    luma = np.asarray(Image.fromarray(rgb).convert("YCbCr")).astype(float) - [0, 128, 128]
    matrix = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    assert near(written(Image.fromarray(rgb).convert("YCbCr"), "TIFF"), (luma @ matrix.T).clip(0, 255))
    hues = [[colorsys.hsv_to_rgb(*one) for one in row] for row in share[..., :3]]
    assert np.abs(np.asarray(to_rgb(Image.fromarray(rgb, "HSV"))) - 255 * np.array(hues)).max() <= 1
    half = Image.fromarray(np.dstack([rgb // 2, np.full((16, 16), 128, np.uint8)]), "RGBa")
    assert np.abs(np.asarray(to_rgb(half)) - (rgb // 2) * (255 / 128)).max() <= 1


def test_lab_is_that_of_its_white() -> None:
    """CIE L*a*b* under D50, as TIFF has it, to sRGB."""
    values = np.array([[[128, 0, 0], [200, 10, 246], [50, 0, 5]]], np.uint8)
    lightness, a, b = values[0, :, 0] / 2.55, *values[0, :, 1:].astype(np.int8).astype(float).T
    middle = (lightness + 16) / 116
    curve = np.stack([middle + a / 500, middle, middle - b / 200])
    xyz = np.where(curve > 6 / 29, curve**3, 3 * (6 / 29) ** 2 * (curve - 4 / 29)) * [[0.96422], [1], [0.82521]]
    matrix = [[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]
    linear = (matrix @ xyz).clip(0, 1).T
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert near(written(Image.fromarray(values, "LAB"), "TIFF"), expected[None])


def test_every_suffix_that_pillow_reads_is_found(tmp_path: Path) -> None:
    names = (
        "a.png",
        "b.JPG",
        "c.jfif",
        "d.avif",
        "e.PPM",
        "f.pgm",
        "g.tga",
        "h.jp2",
        "i.webp",
        "j.tif",
        "k.qoi",
        "l.ico",
    )
    for name in names:
        kind = Image.registered_extensions()[Path(name).suffix.lower()]
        gradient("RGB").save(tmp_path / name, kind)
    assert [path.name for path in find_images("alpha", str(tmp_path))] == list(names)
    assert torch.equal(read(tmp_path / "e.PPM"), read(tmp_path / "a.png"))


def test_what_may_be_an_image_and_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "no_suffix", "b.bak", ".hidden.png"):
        gradient("RGB").save(tmp_path / name, "PNG")
    for name in (
        "x.heic",
        "y.HEIC",
        "z.svg",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "._a.png",
        "labels",
        "n.txt",
        "v.mpg",
    ):
        (tmp_path / name).write_text("P3 is no image")
    with pytest.warns(MergeWarning) as said:
        assert find_images("alpha", str(tmp_path)) == [tmp_path / "a.png"]
    (message,) = (str(one.message) for one in said)
    assert "task alpha" in message
    assert "6 files next to 1 images" in message
    for part in ("2 .heic", "1 .svg", "1 .bak", "1 without a suffix", "1 hidden"):
        assert part in message
    (tmp_path / "a.png").unlink()
    refused(
        lambda: find_images("alpha", str(tmp_path)), "holds no image that Pillow reads", "2 .heic", "as PNG or JPEG"
    )


def test_links_neither_loop_nor_multiply(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "outside"
    (root / "deep").mkdir(parents=True)
    (outside / "deeper").mkdir(parents=True)
    for path in (root / "a.png", root / "deep" / "b.png", outside / "c.png", outside / "deeper" / "d.png"):
        gradient().save(path)
    for link, target in (
        (root / "deep" / "back", root),
        (root / "again", root),
        (root / "above", tmp_path),
        (root / "itself", root / "itself"),
        (root / "out", outside),
        (outside / "deeper" / "up", outside),
        (outside / "home", root),
    ):
        link.symlink_to(target)
    names = ["a.png", "deep/b.png", "out/c.png", "out/deeper/d.png"]
    assert [path.relative_to(root).as_posix() for path in find_images("alpha", str(root))] == names
    assert class_names(root) == ["deep", "out"]
    # The same file, and the same folder, by another name.
    (root / "0.png").symlink_to(root / "a.png")
    (root / "z").symlink_to(outside)
    with pytest.warns(MergeWarning, match="2 links lead to images or folders that are there already: each counts once"):
        found = find_images("alpha", str(root))
    assert [path.relative_to(root).as_posix() for path in found] == names
    (root / "0.png").unlink()
    (root / "z").unlink()
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.warns(MergeWarning, match="1 no regular file"):
        assert root / "gone.png" in find_images("alpha", str(root))
