"""Images to tokens: patches, a class token, and positions for any input size."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


class PatchEmbedding(nn.Module):
    """Projects patches, puts learned tokens before them and adds learned positions.

    Pixels beyond the last whole patch are left out, as a strided convolution leaves them out.

    Attributes:
        width: features of a token.
        patch: height and width of a patch in pixels.
        grid: rows and columns of patches that positions were learned for.
        class_tokens: learned tokens before the patches, with positions.
        registers: learned tokens after those (arXiv 2309.16588), without positions.
        bias: whether the projection has one.
        antialias: whether positions for a smaller grid are averaged over what they stand for.
    """

    width: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    class_tokens: int = 1
    registers: int = 0
    bias: bool = True
    antialias: bool = False

    @nn.compact
    def __call__(self, pixels: Float[Array, "batch height width channel"]) -> Float[Array, "batch token feature"]:
        patches, target = flat_patches(pixels, self.patch)
        tokens = nn.Dense(self.width, use_bias=self.bias, name="projection")(patches)
        first = self.class_tokens
        if first:
            tokens = jnp.concatenate([self._learned("cls_token", first, len(pixels)), tokens], axis=1)
        count = first + self.grid[0] * self.grid[1]
        positions = self.param("positions", nn.initializers.normal(0.02), (1, count, self.width))
        tokens = tokens + interpolate_positions(positions, self.grid, target, first, self.antialias)
        if self.registers:
            registers = self._learned("registers", self.registers, len(pixels))
            tokens = jnp.concatenate([tokens[:, :first], registers, tokens[:, first:]], axis=1)
        return tokens

    def _learned(self, name: str, count: int, batch: int) -> Float[Array, "batch token feature"]:
        made = self.param(name, nn.initializers.normal(0.02), (1, count, self.width))
        return jnp.broadcast_to(made, (batch, count, self.width))


def flat_patches(
    pixels: Float[Array, "batch height width channel"], patch: tuple[int, int]
) -> tuple[Float[Array, "batch token feature"], tuple[int, int]]:
    """Whole patches, row by row, each as one vector; and how many rows and columns there are."""
    batch, height, width, channels = pixels.shape
    high, wide = patch
    rows, columns = height // high, width // wide
    patches = pixels[:, : rows * high, : columns * wide]
    patches = patches.reshape(batch, rows, high, columns, wide, channels).swapaxes(2, 3)
    return patches.reshape(batch, rows * columns, high * wide * channels), (rows, columns)


def interpolate_positions(
    positions: Float[Array, "1 token feature"],
    grid: tuple[int, int],
    target: tuple[int, int],
    first: int = 1,
    antialias: bool = False,
) -> Float[Array, "1 target_token feature"]:
    """Resizes learned patch positions to another grid, bicubically; those of the `first` tokens stay as they are.

    Equal to torch.nn.functional.interpolate(mode="bicubic", align_corners=False), which all families use in
    transformers 5.24; antialiased in DINOv2 with registers only.
    """
    if target == grid:
        return positions
    patches = positions[0, first:].reshape(*grid, -1)
    matrix = antialiased_matrix if antialias else bicubic_matrix
    down, across = matrix(grid[0], target[0]), matrix(grid[1], target[1])
    resized = jnp.einsum("ri,ijf,cj->rcf", down, patches, across, precision="highest")
    return jnp.concatenate([positions[:, :first], resized.reshape(1, target[0] * target[1], -1)], axis=1)


def cubic(distance: Float[np.ndarray, "*shape"], a: float) -> Float[np.ndarray, "*shape"]:
    """The cubic convolution kernel (Keys 1981), 0 from a distance of 2 on."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def bicubic_matrix(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """Weights of cubic convolution (a = -0.75, edges repeated) at pixel centres."""
    centre = (np.arange(target) + 0.5) * (size / target) - 0.5
    base = np.floor(centre).astype(np.int64)
    matrix = np.zeros((target, size), np.float64)
    for offset in (-1, 0, 1, 2):
        weight = cubic(centre - (base + offset), a=-0.75)
        np.add.at(matrix, (np.arange(target), np.clip(base + offset, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def antialiased_matrix(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """Weights of cubic convolution (a = -0.5) stretched to the target's pixels, normalised where edges cut it off."""
    scale = size / target
    centre = (np.arange(target) + 0.5) * scale
    distance = np.arange(size)[None, :] + 0.5 - centre[:, None]
    matrix = cubic(distance / max(scale, 1.0), a=-0.5)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
