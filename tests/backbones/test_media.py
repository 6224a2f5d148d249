"""Raw media to a backbone's inputs: odd and broken images, texts, and paths that must stay inside."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, resolve_layers
from mmrec_jax.backbones.image import (
    ImagePreprocessor,
    MediaError,
    centre_crop,
    known_formats,
    read_image,
    read_image_preprocessor,
)
from mmrec_jax.backbones.media import MediaInputs, Missing, TextInputs, inside
from mmrec_jax.backbones.text import TextPreprocessor, fill_template
from mmrec_jax.errors import BackboneError, ConfigError
from tests.tiny_backbones import write_backbone

PIXELS = 1_000_000
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", PIXELS)
    assert read.size == (20, 40)
    assert colour(read, 10, 2) == BLUE
    assert colour(read, 10, 38) == RED


def test_cmyk_palette_alpha_grey_and_wide_images_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.png")
    Image.new("RGBA", (8, 8), (0, 0, 255, 0)).save(tmp_path / "alpha.png")
    Image.new("LA", (8, 8), (0, 255)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "wide.png")
    transparent = Image.new("P", (8, 8), 3)
    transparent.putpalette([0, 0, 0] * 3 + list(GREEN))
    transparent.save(tmp_path / "gone.png", transparency=3)
    colours = {path.stem: colour(read_image(path, PIXELS), 4, 4) for path in tmp_path.iterdir()}
    assert colours["cmyk"] == RED
    assert colours["alpha"] == WHITE
    assert colours["gone"] == WHITE
    assert colours["grey"] == (0, 0, 0)
    assert colours["wide"] == (127, 127, 127)
    assert colours["palette"] == (0, 0, 0)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (GREEN, RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert colour(read_image(tmp_path / "a.gif", PIXELS), 4, 4) == GREEN


def test_broken_images_are_a_reason_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    noise.save(tmp_path / "whole.png")
    for name in ("whole.jpg", "whole.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    reasons = {
        "cut_whole.jpg": "broken image",
        "cut_whole.png": "broken image",
        "zero.jpg": "empty file",
        "text.jpg": "not an image",
        "program.jpg": "not an image",
        "none.jpg": "file not found",
        "whole.jpg": "too large: 64 x 64 pixels, at most 4095",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason):
            read_image(tmp_path / name, PIXELS if "cut" in name else 4095)


def test_an_image_is_read_from_bytes_as_from_its_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(read_image(content, PIXELS)), noise)
    with pytest.raises(MediaError, match="zero bytes"):
        read_image(b"", PIXELS)
    with pytest.raises(MediaError, match="broken image"):
        read_image(content[:60], PIXELS)


def test_the_pixel_bound_holds_before_pixels_are_decoded(tmp_path: Path) -> None:
    # A PNG header that claims 9,000 x 9,000 pixels, with nothing behind it.
    Image.new("L", (1, 1)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (9_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(MediaError, match="too large: 9000 x 9000 pixels, at most 1000000"):
        read_image(tmp_path / "bomb.png", PIXELS)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_with_an_exif_of_a_few_bytes_is_a_reason(kind: str) -> None:
    if kind not in known_formats():
        pytest.skip(f"Pillow is built without {kind}")
    with pytest.raises(MediaError, match="broken image: unpack"):
        read_image(saved(Image.new("RGB", (8, 8)), kind, exif=b"II*\0"), PIXELS)


def test_a_texture_of_a_format_that_is_unknown_is_a_reason() -> None:
    content = bytearray(saved(Image.new("RGB", (8, 8)), "DDS"))
    content[80:88] = (4).to_bytes(4, "little") + b"ABCD"  # the pixels' format, as four letters
    with pytest.raises(MediaError, match="broken image"):
        read_image(bytes(content), PIXELS)


def test_damaged_bytes_of_any_format_are_an_image_or_a_reason() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    others = {"PSD": b"8BPS\0\1" + bytes(7) + b"\3" + b"\0\0\0\2" * 2 + b"\0\x08\0\3" + bytes(14 + 12)}
    others["XPM"] = b'/* XPM */\nstatic char *x[] = {\n"2 1 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"ab"\n};\n'
    kinds = [kind for kind in known_formats() if kind in others or kind in Image.SAVE]
    assert set(kinds) == set(known_formats())
    for kind in kinds:
        whole = others.get(kind) or saved(noise.convert("1" if kind == "XBM" else "RGB"), kind)
        assert isinstance(read_image(whole, 2 * PIXELS), Image.Image)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(len(whole), size=2).tolist() + rng.integers(min(len(whole), 80), size=2).tolist():
                damaged[place] = rng.integers(256)
            end = int(rng.choice([len(whole), rng.integers(1, len(whole))]))
            with suppress(MediaError):
                assert read_image(bytes(damaged[:end]), PIXELS).mode == "RGB"


def test_a_thin_image_is_not_blown_up_beyond_the_pixel_bound() -> None:
    preprocess = ImagePreprocessor(256, (), 3, (224, 224), 1.0, (0.0,) * 3, (1.0,) * 3)
    for size in ((1, 50_000), (50_000, 1)):
        with pytest.raises(MediaError, match=r"too long and thin: .*12800000.* after resizing, at most 1000000"):
            preprocess.read(saved(Image.new("L", size), "PNG"), PIXELS)
    assert preprocess.read(saved(Image.new("L", (10, 100)), "PNG"), PIXELS).shape == (224, 224, 3)


def test_memory_that_does_not_suffice_for_resizing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*_, **__) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    preprocess = ImagePreprocessor(0, (8, 8), 3, (), 1.0, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(MediaError, match="broken image: MemoryError"):
        preprocess.read(saved(Image.new("L", (9, 9)), "PNG"), PIXELS)


@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "link/secret.jpg", "a\0b"])
def test_media_paths_stay_inside_the_media_root(path: str, tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (tmp_path / "secret.jpg").touch()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(MediaError, match=r"media root"):
        inside(root, path)
    assert inside(root, "posters/../a.jpg") == root / "a.jpg"


def test_each_item_gets_pixels_or_a_reason(tmp_path: Path) -> None:
    preprocess = load(str(write_backbone(tmp_path / "vit", "vit"))).preprocess
    Image.new("RGB", (50, 40), RED).save(tmp_path / "1.png")
    (tmp_path / "2.png").touch()
    catalogue = pl.DataFrame({"item": ["1", "2", "3", "4"], "cover": ["1.png", "2.png", None, "../4.png"]})
    modality = ModalityConfig("image", "x", column="cover")
    read = MediaInputs(modality, preprocess, catalogue, tmp_path, ExtractionConfig(), near=1)
    made = [read(place) for place in range(4)]
    assert isinstance(made[0], np.ndarray)
    assert made[0].shape == (28, 28, 3)
    np.testing.assert_allclose(made[0][5, 5], [(1 - 0.5) / 0.2, -0.4 / 0.25, -0.3 / 0.3], rtol=1e-5)
    assert [m.failed for m in made[1:] if isinstance(m, Missing)] == [True, False, True]


def test_names_that_cannot_be_files_and_closed_folders_are_a_reason_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = load(str(write_backbone(tmp_path / "vit", "vit"))).preprocess
    (tmp_path / "loop").symlink_to("loop")
    long = "x" * 300
    named = [long, f"/9j/{long}", "loop/1.png", f"{long}.parquet#a:0", "closed/1.png", "closed.parquet#a:0"]
    catalogue = pl.DataFrame({"item": list(map(str, range(len(named)))), "cover": named})
    modality = ModalityConfig("image", "x", column="cover")
    read = MediaInputs(modality, preprocess, catalogue, tmp_path, ExtractionConfig(), near=1)

    def is_file(path: Path) -> bool:  # root may look into any folder
        if "closed" in path.name + path.parent.name:
            raise PermissionError(13, "Permission denied")
        return asked(path)

    asked = Path.is_file
    monkeypatch.setattr(Path, "is_file", is_file)
    reasons = [made.reason for made in map(read, range(len(named))) if isinstance(made, Missing) and made.failed]
    assert len(reasons) == len(named)
    assert max(map(len, reasons)) < 200
    assert reasons[0] == reasons[3] == "file cannot be opened: File name too long"
    assert reasons[4:] == ["file cannot be opened: Permission denied"] * 2


def test_texts_lose_html_entities_and_empty_ones_are_missing(tmp_path: Path) -> None:
    preprocess = load(str(write_backbone(tmp_path)), max_tokens=6).preprocess
    catalogue = pl.DataFrame({"item": ["1", "2", "3", "4"], "title": ["a &amp; b", "  ", None, "abcdefgh"]})
    assert isinstance(preprocess, TextPreprocessor)
    made = TextInputs(ModalityConfig("text", "x", template="{title}"), preprocess, catalogue)(np.arange(4))
    assert isinstance(made[0], np.ndarray)
    assert made[0].tolist() == [2, 8, 4, 9, 3]
    assert made[1] == made[2] == Missing("empty text", failed=False)
    assert isinstance(made[3], np.ndarray)
    assert len(made[3]) == 6
    assert made[3][-1] == 3


def test_html_entities_are_decoded_once(tmp_path: Path) -> None:
    preprocess = load(str(write_backbone(tmp_path)), max_tokens=12).preprocess
    catalogue = pl.DataFrame({"title": ["a &amp;amp; b", "a &amp; b", "&nbsp;", "&amp;nbsp;"]})
    assert isinstance(preprocess, TextPreprocessor)
    twice, once, space, spelt = TextInputs(ModalityConfig("text", "x", template="{title}"), preprocess, catalogue)(
        np.arange(4)
    )
    np.testing.assert_array_equal(twice, preprocess.tokenizer.encode("a &amp; b").ids)
    np.testing.assert_array_equal(once, preprocess.tokenizer.encode("a & b").ids)
    assert space == Missing("empty text", failed=False)
    np.testing.assert_array_equal(spelt, preprocess.tokenizer.encode("&nbsp;").ids)


def test_a_template_joins_columns_of_any_type_and_is_empty_only_where_all_are() -> None:
    catalogue = pl.DataFrame({"title": ["A", None, None], "year": [1999, 2000, None]})
    assert fill_template("{title} ({year})", catalogue) == ["A (1999)", "(2000)".rjust(7), ""]
    assert fill_template("{{x}} {title}", catalogue) == ["{x} A", "", ""]
    with pytest.raises(ConfigError, match=r"names the column 'plot', which the catalogue lacks; it has title, year"):
        fill_template("{plot}", catalogue)


def test_a_template_joins_lists_and_refuses_other_nested_columns() -> None:
    catalogue = pl.DataFrame(
        {
            "title": ["A", "B", None, None],
            "genres": [["Drama", None, "War", ""], [], None, ["Crime"]],
            "years": pl.Series([[1999, 2000], [2001, 2002], None, None], dtype=pl.Array(pl.Int64, 2)),
            "about": [{"plot": "x"}] * 4,
            "deep": [[["x"]]] * 4,
            "casts": [[{"name": "x"}]] * 4,
            "stills": [[b"x"]] * 4,
        }
    )
    assert fill_template("{title}: {genres}", catalogue) == ["A: Drama, War", "B: ", "", ": Crime"]
    assert fill_template("{years}", catalogue) == ["1999, 2000", "2001, 2002", "", ""]
    for column in ("about", "deep", "casts", "stills"):
        with pytest.raises(ConfigError, match=rf"names the column '{column}' of type .*: make it a column of text"):
            fill_template(f"{{title}} {{{column}}}", catalogue)


@pytest.mark.parametrize("template", ["no column", "{title.__class__}", "{title!r}", "{title:>5}", "{0[a]}", "{", "{}"])
def test_a_template_holds_plain_column_names_only(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        ModalityConfig("text", "x", template=template)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "smell"}, "kind 'smell'"),
        ({"template": ""}, "needs `template`"),
        ({"template": "{a}", "pooling": "max"}, "pooling 'max'"),
        ({"template": "{a}", "layers": (2, 1)}, "ascending"),
        ({"template": "{a}", "layers": (-1,)}, "negative"),
        ({"template": "{a}", "backbone": ""}, "needs a backbone"),
        ({"template": "{a}", "max_tokens": 2}, "max_tokens is 2"),
        ({"template": "{a}", "column": "b"}, "are for files"),
        ({"kind": "image"}, "exactly one of"),
        ({"kind": "image", "column": "a", "path_template": "{a}"}, "exactly one of"),
        ({"kind": "image", "column": "a", "template": "{a}"}, "is for text"),
    ],
)
def test_impossible_modalities_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModalityConfig(**values)


@pytest.mark.parametrize("values", [{"dtype": "float16"}, {"text_batch": -1}, {"max_failure_share": 5.0}])
def test_impossible_extraction_settings_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ExtractionConfig(**values)


def test_no_layers_mean_every_second_one() -> None:
    assert resolve_layers((), 6, "m") == (0, 2, 4, 6)
    assert resolve_layers((1, 6), 6, "m") == (1, 6)
    with pytest.raises(ConfigError, match=r"m: layer 7 .* hidden states 0 to 6"):
        resolve_layers((1, 7), 6, "m")


def test_a_crop_larger_than_the_image_is_filled_with_zeros() -> None:
    pixels = np.ones((3, 6, 1), np.uint8)
    cropped = centre_crop(pixels, (5, 4))
    assert cropped.shape == (5, 4, 1)
    assert cropped[:, 0, 0].tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"image_processor_type": "OwlViTImageProcessor"}', "'OwlViTImageProcessor' is unknown"),
        ('{"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 5}}', "not usable"),
        ('{"image_processor_type": "ViTImageProcessor", "resample": 9}', "not usable"),
    ],
)
def test_an_image_processor_that_is_unknown_or_incomplete_is_an_error(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(BackboneError, match=message):
        read_image_preprocessor(tmp_path)
