"""Facts of accelerator chips: what a program's flops, bytes and messages are divided by."""

from __future__ import annotations

from dataclasses import dataclass

_GOOGLE = "cloud.google.com/tpu/docs"
GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """One chip, as its maker's documents have it.

    Attributes:
        name: as in a topology's name.
        platform: of the compiler: `tpu`, `cuda` or `cpu`.
        flops: bfloat16 matrix products, floating-point operations a second; 0 where no rate is known, and no time is
            predicted.
        float32_share: rate of float32 products at JAX's default precision, as a share of `flops`.
        memory: bytes of HBM that a program can have.
        bandwidth: of HBM, bytes a second.
        network: bytes a second that a chip can send while it receives as many, over all links to its neighbours
            (TPU: the inter-chip links, half of the documents' bidirectional figure; GPU: NVLink inside a host).
        axes: of the torus that the links make; 0 where all chips of a host reach each other through a switch.
        wraps: length from which on an axis of a slice closes to a ring; shorter ones are lines, at half the rate.
        host: GPUs of a host at most; 0 where a topology's shape has no hosts.
        host_network: bytes a second and chip between hosts, where that is another network; 0 where it is the same.
        latency: seconds a message takes from chip to chip. Measured by nobody here: an assumption.
        clock: cycles a second, which turns the compiler's cycles into seconds; 0 where it tells none.
        source: where the figures are from.
    """

    name: str
    platform: str
    flops: float = 0.0
    float32_share: float = 1.0
    memory: float = 0.0
    bandwidth: float = 0.0
    network: float = 0.0
    axes: int = 0
    wraps: int = 0
    host: int = 0
    host_network: float = 0.0
    latency: float = 1e-6
    clock: float = 0.0
    source: str = ""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            "tpu",
            flops=275e12,
            memory=31.25 * GIB,
            bandwidth=1200e9,
            network=300e9,
            axes=3,
            wraps=4,
            source=f"{_GOOGLE}/v4; links: arXiv 2304.01433, table 4 (6 of 50 GB/s)",
        ),
        Chip(
            "v5e",
            "tpu",
            flops=197e12,
            memory=15.75 * GIB,
            bandwidth=819e9,
            network=200e9,
            axes=2,
            wraps=16,
            clock=1.5e9,
            source=f"{_GOOGLE}/v5e; clock: peak / (4 units x 128 x 128 x 2)",
        ),
        Chip(
            "v5p",
            "tpu",
            flops=459e12,
            memory=95 * GIB,
            bandwidth=2765e9,
            network=600e9,
            axes=3,
            wraps=4,
            source=f"{_GOOGLE}/v5p",
        ),
        Chip(
            "v6e",
            "tpu",
            flops=918e12,
            memory=31.25 * GIB,
            bandwidth=1638e9,
            network=400e9,
            axes=2,
            wraps=16,
            source=f"{_GOOGLE}/v6e",
        ),
        Chip(
            "h100",
            "cuda",
            flops=989.4e12,
            # JAX multiplies float32 as TF32 there, at 494.7e12.
            float32_share=0.5,
            memory=84978434048.0,
            bandwidth=3352.32e9,
            network=450e9,
            host=8,
            host_network=50e9,
            latency=1e-5,
            source="NVIDIA H100 SXM5 data sheet, dense; NVLink 4 of 900 GB/s both ways together; between hosts a port "
            "of 400 Gb/s a GPU, as in DGX H100; memory as the driver reports it",
        ),
        Chip("cpu", "cpu", source="the machine that plans: its compiler, and no rates"),
    )
}
"""The chips by name. The HBM of a TPU is what its compiler leaves to a program, some less than the documents say."""

H100_TARGET = """\
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 1 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA's GPU compiler has to know of an H100 that is not there: its GpuTargetConfig in text form."""
