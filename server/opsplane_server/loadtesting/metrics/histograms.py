"""Base-2 exponential histograms, as OpenTelemetry defines them.

Bucket `i` at scale `s` holds values in `(base^i, base^(i+1)]` with `base = 2^(2^-s)`: the scale says how fine buckets
are, and each coarser scale joins pairs of them. So histograms of different scales merge exactly at the coarser one,
and a percentile of the merged histogram is off by one bucket at most: `2^(2^-s) - 1`, 9% at scale 3, 2.2% at scale 5.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add

MIN_SCALE = -10
MAX_SCALE = 20

# Senders keep 160 buckets. Merged histograms may span more values than any of their parts; with four times as many
# buckets a range of 1 to 1,000,000 still has scale 5, so merging hardly ever makes them coarser.
MAX_BUCKETS = 640


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values of zero and more. Without values `min` is infinity and `max` minus infinity.

    `counts[i]` is the number of values in bucket `offset + i`; its first and last are never 0. `zero_count` values
    were exactly 0. `count`, `total` (the sum), `min` and `max` are exact. Make one with `of`: it sees to this form.
    """

    scale: int = MAX_SCALE
    offset: int = 0
    counts: tuple[int, ...] = ()
    zero_count: int = 0
    count: int = 0
    total: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    @classmethod
    def of(
        cls,
        scale: int,
        offset: int,
        counts: Sequence[int],
        *,
        zero_count: int,
        total: float,
        min: float | None = None,
        max: float | None = None,
    ) -> Histogram:
        """A histogram of the given buckets. Unknown `min` and `max` are taken from the bounds of the buckets.

        Raises ValueError when such buckets cannot hold numbers.
        """
        count = zero_count + sum(counts)
        if not count:
            return EMPTY
        first = next((i for i, c in enumerate(counts) if c), len(counts))
        last = next((i for i in range(len(counts) - 1, -1, -1) if counts[i]), -1)
        offset, counts = offset + first, counts[first : last + 1]
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ValueError(f"a histogram of scale {scale}")
        low, high = math.ldexp(offset, -scale), math.ldexp(offset + len(counts), -scale)
        # The bucket of the smallest double starts below it.
        if counts and not (low >= -1074 - math.ldexp(1, -scale) and high <= 1024 + math.ldexp(1, -scale)):
            raise ValueError("a histogram of values that are no numbers")
        if not counts:
            scale, offset = MAX_SCALE, 0
        return cls(
            scale=scale,
            offset=offset,
            counts=tuple(counts),
            zero_count=zero_count,
            count=count,
            total=total,
            min=min if min is not None else 0.0 if zero_count else _power(low),
            max=max if max is not None else _power(high) if counts else 0.0,
        )

    @property
    def mean(self) -> float:
        """The exact mean; 0 without values."""
        return self.total / self.count if self.count else 0.0

    @property
    def relative_error(self) -> float:
        """The most that a quantile can be off: the width of a bucket. 0.022 means 2.2%."""
        return math.exp2(math.ldexp(1, -self.scale)) - 1 if self.counts else 0.0

    def quantiles(self, *shares: float) -> list[float]:
        """Quantiles of the values, each of `shares` from 0 to 1.

        They mean what k6 means by p(95): linear between the two values next to rank `share * (count - 1)`. Inside a
        bucket values are taken to lie evenly on a logarithmic scale. 0 and 1 give `min` and `max`. Raises
        ValueError without values.
        """
        if not self.count:
            raise ValueError("quantiles of an empty histogram")
        before = list(accumulate(self.counts, initial=self.zero_count))
        return [self._quantile(share, before) for share in shares]

    def _quantile(self, share: float, before: list[int]) -> float:
        position = share * (self.count - 1)
        rank = int(position)
        low = self._value(rank, before)
        if position == rank:
            return low
        return low + (self._value(rank + 1, before) - low) * (position - rank)

    def _value(self, rank: int, before: list[int]) -> float:
        """The `rank`-th value from below, counted from 0. `before[i]` is the number of values below bucket `i`."""
        if rank <= 0:
            return self.min
        if rank >= self.count - 1:
            return self.max
        if rank < self.zero_count:
            return 0.0
        bucket = bisect_right(before, rank) - 1
        inside = (rank - before[bucket] + 0.5) / self.counts[bucket]
        value = _power(math.ldexp(self.offset + bucket + inside, -self.scale))
        return min(max(value, self.min), self.max)


EMPTY = Histogram()


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """All values of the histograms in one, at the coarsest scale among them, coarser only where it would not fit."""
    parts = [h for h in histograms if h.count]
    if len(parts) < 2:
        return parts[0] if parts else EMPTY
    filled = [h for h in parts if h.counts]
    scale, offset, counts = _merge_buckets(filled) if filled else (MAX_SCALE, 0, [])
    return Histogram(
        scale=scale,
        offset=offset,
        counts=tuple(counts),
        zero_count=sum(h.zero_count for h in parts),
        count=sum(h.count for h in parts),
        total=sum(h.total for h in parts),
        min=min(h.min for h in parts),
        max=max(h.max for h in parts),
    )


def _merge_buckets(parts: Sequence[Histogram]) -> tuple[int, int, list[int]]:
    scale = min(h.scale for h in parts)
    low = min(h.offset >> (h.scale - scale) for h in parts)
    high = max((h.offset + len(h.counts) - 1) >> (h.scale - scale) for h in parts)
    while high - low >= MAX_BUCKETS:
        scale, low, high = scale - 1, low >> 1, high >> 1
    counts = [0] * (high - low + 1)
    for part in parts:
        shift = part.scale - scale
        if shift:
            for bucket, count in enumerate(part.counts, part.offset):
                counts[(bucket >> shift) - low] += count
        else:
            start = part.offset - low
            end = start + len(part.counts)
            counts[start:end] = map(add, counts[start:end], part.counts)
    return scale, low, counts


def _power(exponent: float) -> float:
    """2 to the exponent; infinity beyond what a double holds."""
    return math.exp2(exponent) if exponent < 1024 else math.inf
