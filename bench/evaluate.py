"""How long an evaluation takes at the size of amazon-scientific, beside this machine's matrix-product rate.

    python bench/evaluate.py [--users 12076 --items 20825 --width 64 --k 50 --rounds 7]

Random vectors, histories of 3 to 11 items. All candidates are timed in turn, round by round, so that other
load on the machine meets them alike; medians are printed. The peer is the same protocol in plain numpy,
without a sort.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmrec_jax.data.prepared import Examples
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.evaluation import EvaluationConfig, evaluate
from mmrec_jax.evaluation.blocks import array_producer
from mmrec_jax.evaluation.ranking import ranked_blocks

BLOCK = 256
SIZE = 2048


class ArrayScorer:
    """Vectors that are already there."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.items, self.next = jnp.asarray(users), jnp.asarray(items), 0

    def user_vectors(self, inputs: np.ndarray) -> jax.Array:
        """The next users in turn."""
        start = self.next
        self.next = (start + len(inputs)) % len(self.users)
        return self.users[np.arange(start, start + len(inputs)) % len(self.users)]

    def item_vectors(self) -> jax.Array:
        """All items."""
        return self.items


def numpy_peer(users: np.ndarray, items: np.ndarray, targets: np.ndarray, seen: Ragged) -> np.ndarray:
    """Ranks by counting in blocks of users."""
    found = []
    for start in range(0, len(users), BLOCK):
        stop = min(start + BLOCK, len(users))
        scores = users[start:stop] @ items.T
        held_out = scores[np.arange(stop - start), targets[start:stop]]
        row = np.repeat(np.arange(stop - start), seen.lengths[start:stop])
        scores[row, seen.values[seen.offsets[start] : seen.offsets[stop]]] = -np.inf
        scores[np.arange(stop - start), targets[start:stop]] = held_out
        found.append((scores[:, 1:] >= held_out[:, None]).sum(axis=1))
    return np.concatenate(found)


def main() -> None:
    """Time ranks, ranks with lists, a whole evaluation and the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("users", 12076), ("items", 20825), ("width", 64), ("k", 50), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    users = rng.standard_normal((args.users, args.width), dtype=np.float32)
    items = rng.standard_normal((args.items + 1, args.width), dtype=np.float32)
    lengths = rng.integers(3, 12, args.users)
    seen = Ragged.of_lengths(rng.integers(1, args.items + 1, lengths.sum()), lengths)
    targets = rng.integers(1, args.items + 1, args.users).astype(np.int32)
    examples = Examples(np.arange(args.users, dtype=np.int32), seen, targets, np.zeros(args.users, bool))
    popularity = np.bincount(seen.values, minlength=args.items + 1)
    producer, item_vectors = array_producer(users), jnp.asarray(items)
    product = jax.jit(lambda block, table: jnp.max(block @ table.T))
    blocks = [jnp.asarray(users[start : start + BLOCK]) for start in range(0, args.users, BLOCK)]

    def ranking(k: int) -> np.ndarray:
        found = ranked_blocks(producer, item_vectors, targets, seen, k=k)
        return np.concatenate([block.ranks for block in found])

    square = jnp.ones((SIZE, SIZE), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    candidates: dict[str, Callable[[], object]] = {
        f"float32 product {SIZE}^3": lambda: multiply(square, square).block_until_ready(),
        "scores and their maxima only": lambda: jax.block_until_ready([product(b, item_vectors) for b in blocks]),
        "exact ranks": lambda: ranking(0),
        f"exact ranks and top-{args.k} lists": lambda: ranking(args.k),
        "whole evaluation": lambda: evaluate(
            ArrayScorer(users, items),
            examples,
            popularity,
            length=10,
            config=EvaluationConfig(ks=(10, 20, args.k)),
        ),
        "numpy peer, ranks only": lambda: numpy_peer(users, items, targets, seen),
    }
    agree = np.mean(ranking(0) == numpy_peer(users, items, targets, seen))
    for candidate in candidates.values():
        candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)
    rate = 2 * SIZE**3 / float(np.median(seconds[f"float32 product {SIZE}^3"]))
    floor = 2 * args.users * args.items * args.width / rate
    print(f"{args.users:,} users x {args.items:,} items, width {args.width}; {args.rounds} rounds, medians")
    print(f"float32 matrix products: {rate / 1e9:.0f} GFLOP/s, so all scores need {floor:.3f} s")
    for name, values in seconds.items():
        median = float(np.median(values))
        print(f"{name:32s} {median:7.3f} s, best {min(values):.3f} s; {median / floor:5.1f} x the flops' time")
    print(f"ranks equal to the peer's: {100 * agree:.2f}% (others: rounding of the scores)")


if __name__ == "__main__":
    main()
