"""The peak of memory that is reported is that of training."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mmrec_jax.training.memory import peak_memory_bytes, restart_peak_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak is that of the process's life")
def test_what_was_freed_before_counts_no_more():
    block = np.ones(2**25)  # 256 MiB
    before = peak_memory_bytes()
    del block
    restart_peak_memory()
    # Some pages of others may come and go meanwhile.
    assert peak_memory_bytes() < before - 200 * 2**20
