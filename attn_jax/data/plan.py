"""The batch plan: which examples step t takes, as a pure function of t. The data position of a run is its step number.

The bucket of step t depends on (data fingerprint, batch size, t) alone, so all runs of a program agree on it; the
examples depend on (run seed, t). Each bucket is a stream of its examples in a new random order each time through, cut
into batches; an epoch holds each bucket as often as its share demands, in random order.
"""

import functools
import zlib

import numpy as np


class Plan:
    """sizes: examples in each bucket. replacement: draw examples independently instead of going through all of them."""

    def __init__(self, fingerprint: str, sizes: list[int], batch_size: int, *, replacement: bool = False):
        self.sizes, self.batch_size, self.replacement = np.array(sizes, np.int64), batch_size, replacement
        self.entropy = zlib.crc32(f"{fingerprint}/{batch_size}".encode())
        self.steps_per_epoch = float(self.sizes.sum() / batch_size)
        self._order = functools.lru_cache(maxsize=4 * len(sizes) * 64)(self._shuffled)
        self._epoch = functools.lru_cache(maxsize=4)(self._shuffled_epoch)
        self._batches = functools.lru_cache(maxsize=4)(self._numbered)

    def _before(self, epoch: int) -> np.ndarray:
        """Batches of each bucket in all epochs before this one."""
        return epoch * self.sizes // self.batch_size

    def _shuffled_epoch(self, epoch: int) -> np.ndarray:
        counts = self._before(epoch + 1) - self._before(epoch)
        ids = np.repeat(np.arange(len(self.sizes)), counts)
        return np.random.default_rng([self.entropy, epoch]).permutation(ids)

    def _shuffled(self, seed: int, bucket: int, time: int) -> np.ndarray:
        return np.random.default_rng([_unsigned(seed), bucket, time]).permutation(self.sizes[bucket])

    def _locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and its place in it."""
        epoch = int(step / self.steps_per_epoch)
        while self._before(epoch).sum() > step:
            epoch -= 1
        while self._before(epoch + 1).sum() <= step:
            epoch += 1
        return epoch, step - int(self._before(epoch).sum())

    def buckets(self, start: int, count: int) -> np.ndarray:
        """The bucket of each of `count` steps from `start`: [count] int32."""
        ids: list[int] = []
        while len(ids) < count:
            epoch, place = self._locate(start + len(ids))
            ids.extend(self._epoch(epoch)[place : place + count - len(ids)])
        return np.array(ids, np.int32)

    def indices(self, seed: int, start: int, count: int) -> np.ndarray:
        """The examples of each step, as positions in its bucket: [count, batch_size] int32."""
        rows = []
        for step, (bucket, number) in enumerate(self._batches(start, count), start):
            if self.replacement:
                size = int(self.sizes[bucket])
                rows.append(np.random.default_rng([_unsigned(seed), step]).integers(size, size=self.batch_size))
            else:
                rows.append(self._batch(seed, bucket, number * self.batch_size))
        return np.array(rows, np.int32).reshape(count, self.batch_size)

    def _numbered(self, start: int, count: int) -> list[tuple[int, int]]:
        """The bucket of each step, and the number of its batch in the bucket, which all seeds have in common."""
        found = []
        for step, bucket in enumerate(self.buckets(start, count).tolist(), start):
            epoch, place = self._locate(step)
            before = np.count_nonzero(self._epoch(epoch)[:place] == bucket)
            found.append((bucket, int(self._before(epoch)[bucket] + before)))
        return found

    def _batch(self, seed: int, bucket: int, first: int) -> np.ndarray:
        """The examples from a place of a bucket's stream on: as many as a batch has, of one order or several."""
        size, parts, missing = int(self.sizes[bucket]), [], self.batch_size
        while missing:
            time, place = divmod(first, size)
            parts.append(self._order(seed, bucket, time)[place : place + missing])
            first, missing = first + len(parts[-1]), missing - len(parts[-1])
        return np.concatenate(parts)


def _unsigned(seed: int) -> int:
    return seed % 2**32
