"""Images to tokens: patches, a class token, and positions for any input size."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


class PatchEmbedding(nn.Module):
    """Projects patches, puts a class token before them and adds learned positions.

    Pixels beyond the last whole patch are left out, as a strided convolution leaves them out.
    """

    width: int
    patch: tuple[int, int]
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, pixels: Float[Array, "batch height width channel"]) -> Float[Array, "batch token feature"]:
        batch, height, width, channels = pixels.shape
        high, wide = self.patch
        rows, columns = height // high, width // wide
        patches = pixels[:, : rows * high, : columns * wide]
        patches = patches.reshape(batch, rows, high, columns, wide, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, rows * columns, high * wide * channels)
        tokens = nn.Dense(self.width, name="projection")(patches)
        first = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        tokens = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, self.width)), tokens], axis=1)
        count = 1 + self.grid[0] * self.grid[1]
        positions = self.param("positions", nn.initializers.normal(0.02), (1, count, self.width))
        return tokens + interpolate_positions(positions, self.grid, (rows, columns))


def interpolate_positions(
    positions: Float[Array, "1 token feature"], grid: tuple[int, int], target: tuple[int, int]
) -> Float[Array, "1 target_token feature"]:
    """Resizes learned patch positions to another grid, bicubically; the class token's stays as it is.

    Equal to torch.nn.functional.interpolate(mode="bicubic", align_corners=False) without antialiasing, which
    ViT and DINOv2 use in transformers 5.23.
    """
    if target == grid:
        return positions
    patches = positions[0, 1:].reshape(*grid, -1)
    down, across = bicubic_matrix(grid[0], target[0]), bicubic_matrix(grid[1], target[1])
    resized = jnp.einsum("ri,ijf,cj->rcf", down, patches, across, precision="highest")
    return jnp.concatenate([positions[:, :1], resized.reshape(1, target[0] * target[1], -1)], axis=1)


def bicubic_matrix(size: int, target: int) -> np.ndarray:
    """Weights [target, size] of cubic convolution (a = -0.75, edges repeated) at pixel centres."""
    a = -0.75
    centre = (np.arange(target) + 0.5) * (size / target) - 0.5
    base = np.floor(centre).astype(np.int64)
    matrix = np.zeros((target, size), np.float64)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(centre - (base + offset))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        np.add.at(
            matrix,
            (np.arange(target), np.clip(base + offset, 0, size - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix.astype(np.float32)
