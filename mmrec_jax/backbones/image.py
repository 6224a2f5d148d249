"""Image files to pixels, and a backbone's preprocessing of them."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrec_jax.backbones.medium import MediaError, Medium, open_medium
from mmrec_jax.errors import BackboneError

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
CLIP = {"resample": 3, "size": {"shortest_edge": 224}, **CROP, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False, **HALF}
PROCESSORS = {
    # image_processor_type (without Fast/Pil) -> its defaults in transformers 5.24; "square" is what one number means
    "BitImageProcessor": {**CLIP, "square": False},
    "CLIPImageProcessor": {**CLIP, "square": False},
    "DeiTImageProcessor": {"resample": 3, "size": {"height": 256, "width": 256}, **CROP, **HALF, "square": True},
    "SiglipImageProcessor": {"resample": 3, **SQUARE, "square": False},
    "ViTImageProcessor": {"resample": 2, **SQUARE, "square": True},
    "VideoMAEImageProcessor": {"resample": 2, "size": {"shortest_edge": 224}, **CROP, **HALF, "square": False},
}
FORMATS = (
    # Of what Pillow reads; EPS stays out, since it is a program that Ghostscript would run.
    *("AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Where transformers keeps a processor, newest last; the last one holds those of several kinds."""
NAME_KEYS = ("image_processor_type", "video_processor_type", "feature_extractor_type")


@contextmanager
def _image_errors() -> Iterator[None]:
    """Turns whatever Pillow raises at a file that is no sound image into MediaError.

    Its plugins raise any of Python's errors at broken files (struct.error, RuntimeError, NotImplementedError, ...).
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities (corrupt EXIF, palette transparency) that it copes with.
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise MediaError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise MediaError("too large: more pixels than Pillow's own bound") from error
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"broken image: {str(error) or type(error).__name__}") from error


@cache
def known_formats() -> list[str]:
    """Those of `FORMATS` that Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read_image(medium: Medium, max_pixels: int) -> Image.Image:
    """An RGB image, upright by its EXIF orientation; the first frame of an animation.

    Transparent pixels are laid over white; CMYK, palette, grey and 16-bit images become RGB.

    Raises:
        MediaError: the medium is absent, empty, truncated, no image, or has more than `max_pixels` pixels.
    """
    with open_medium(medium) as file, _image_errors(), Image.open(file, formats=known_formats()) as opened:
        # Checked before decoding: the header's size decides how much memory the pixels take.
        if opened.width * opened.height > max_pixels:
            raise MediaError(f"too large: {opened.width} x {opened.height} pixels, at most {max_pixels} are allowed")
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(ground, image).convert("RGB")
        if image.mode.startswith(("I", "F")):
            # Pillow clips wide integers at 255; their upper bits are what is seen.
            wide = np.asarray(image, np.float32)
            top = max(float(wide.max()), 1.0)
            span = 65535.0 if top > 255 else 255.0
            image = Image.fromarray(np.clip(wide * (255.0 / span), 0, 255).astype(np.uint8))
        return image.convert("RGB")


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resize, centre crop, rescale and normalise, each as preprocessor_config.json says.

    Attributes:
        shortest_edge: shorter side after resizing, the other in proportion; 0 where `size` is set.
        size: height and width after resizing; () when `shortest_edge` is set or nothing is resized.
        resample: Pillow's number of the filter.
        crop: height and width cut from the centre; () for none.
        scale: factor on values 0..255; 1 for none.
        mean: subtracted per channel after scaling.
        std: divided by per channel.
    """

    shortest_edge: int
    size: tuple[int, ...]
    resample: int
    crop: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fingerprint(self) -> dict:
        """What its result depends on, as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def output(self) -> tuple[int, ...]:
        """Height and width of every image after it; () where they depend on the image."""
        return self.crop or self.size

    def __call__(self, image: Image.Image, max_pixels: float = math.inf) -> Float[np.ndarray, "height width channel"]:
        """Pixels as the encoder takes them, float32.

        Raises:
            MediaError: it is so long and thin that it would have more than `max_pixels` pixels after resizing.
        """
        if self.shortest_edge or self.size:
            width, height = self._resized(image.width, image.height)
            if self.shortest_edge and width * height > max_pixels:
                raise MediaError(
                    f"too long and thin: {image.width} x {image.height} pixels, {width} x {height} after resizing, at "
                    f"most {max_pixels} are allowed"
                )
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop:
            pixels = centre_crop(pixels, self.crop)
        return self.normalised(pixels)

    def read(self, medium: Medium, max_pixels: int) -> Float[np.ndarray, "height width channel"]:
        """An image file as the encoder takes it.

        Raises:
            MediaError: as `read_image`, or it has more than `max_pixels` pixels after resizing.
        """
        with _image_errors():
            return self(read_image(medium, max_pixels), max_pixels)

    def normalised(self, pixels: UInt8[np.ndarray, "... channel"]) -> Float[np.ndarray, "... channel"]:
        """The last steps: rescaled and normalised."""
        scaled = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; fractions of the longer side are cut off, as in transformers."""
        if self.size:
            return self.size[1], self.size[0]
        edge = self.shortest_edge
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge


def centre_crop(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Cuts [height, width, channel] to `size` at its centre, with zeros around images that are smaller."""
    height, width = pixels.shape[:2]
    high, wide = size
    above, left = (height - high) // 2, (width - wide) // 2
    if above >= 0 and left >= 0:
        return pixels[above : above + high, left : left + wide]
    tall, broad = max(high, height), max(wide, width)
    top, side = math.ceil((tall - height) / 2), math.ceil((broad - width) / 2)
    padded = np.zeros((tall, broad, pixels.shape[2]), pixels.dtype)
    padded[top : top + height, side : side + width] = pixels
    above, left = above + top, left + side
    return padded[max(0, above) : min(tall, above + high), max(0, left) : min(broad, left + wide)]


def read_image_preprocessor(directory: Path) -> ImagePreprocessor:
    """The preprocessing that a backbone's processor file asks for.

    Raises:
        BackboneError: the file is absent, of an unknown processor, or without a usable size.
    """
    path = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if path is None:
        raise BackboneError(f"{directory} has no {FILES[0]}: copy it from the model's hub repository")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path} is not valid JSON: {error}") from error
    if path.name == FILES[-1]:
        config = config.get("image_processor") or config.get("video_processor") or {}
    named = next((config[key] for key in NAME_KEYS if config.get(key)), "")
    name = re.sub(r"(FeatureExtractor|VideoProcessor|ImageProcessor(Fast|Pil)?)$", "ImageProcessor", str(named))
    if name not in PROCESSORS:
        raise BackboneError(f"{path}: image processor {named!r} is unknown; known are {', '.join(PROCESSORS)}")
    config = {**PROCESSORS[name], **{key: value for key, value in config.items() if value is not None}}
    try:
        return _preprocessor(config)
    except (TypeError, KeyError, ValueError) as error:
        raise BackboneError(f"{path}: size, crop_size, image_mean or image_std is not usable ({error})") from error


def _preprocessor(config: dict) -> ImagePreprocessor:
    size, crop = config["size"], config.get("crop_size")
    if isinstance(size, int):
        size = {"height": size, "width": size} if config["square"] else {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    resized = config.get("do_resize", True)
    edge = int(size["shortest_edge"]) if resized and "shortest_edge" in size else 0
    normalised = config.get("do_normalize", True)
    resample = int(config["resample"])
    if resample not in RESAMPLING:
        raise ValueError(f"resample {resample} is no filter of Pillow")
    return ImagePreprocessor(
        shortest_edge=edge,
        size=(int(size["height"]), int(size["width"])) if resized and not edge else (),
        resample=resample,
        crop=(int(crop["height"]), int(crop["width"])) if config["do_center_crop"] and crop else (),
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(float(v) for v in config["image_mean"]) if normalised else (0.0,) * 3,
        std=tuple(float(v) for v in config["image_std"]) if normalised else (1.0,) * 3,
    )
