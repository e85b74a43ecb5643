"""A random order of very many data, in memory that does not grow with them as a permutation's would."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..arguments import found, instance, integer

#: Data that lie side by side in a block, and blocks that are shuffled together.
BLOCK, POOLED = 256, 64


class BlockShuffleSampler(Sampler[int]):
    """Every datum once, in a random order of blocks whose data are shuffled together some blocks at a time.

    The N data are cut into blocks of neighbours. A pass draws an order of the blocks, and the data of each ``pooled``
    successive ones in random order. Where the blocks have equal sizes each datum is at each place of the pass with
    probability 1 / N; two data of one block are always among the same ``block * pooled`` successive ones. With
    ``block=1``, or ``pooled`` at least the number of blocks, all orders are equally likely.

    It keeps about 8 N / block + 50 block * pooled bytes, where torch's RandomSampler keeps about 50 N, and data on
    a disk are read at ``pooled`` places at a time instead of anywhere.

    Args:
        data: what has N data, for its length.
        block: data in a block.
        pooled: blocks that are shuffled together.
        generator: what the orders are drawn from; torch's global one by default.

    Raises:
        TypeError: data has no length, or an argument is of another kind.
        ValueError: a number is not positive, or there are no data.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.BlockShuffleSampler(range(1000), block=10, pooled=4)
        >>> sorted(sampler) == list(range(1000))
        True
    """

    def __init__(
        self, data: Sized, *, block: int = BLOCK, pooled: int = POOLED, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        try:
            self.size: int = len(data)
        except TypeError:
            raise TypeError(
                f"data must have a length, found {found(data)}; a stream is shuffled by whoever makes it"
            ) from None
        if not self.size:
            raise ValueError("data must not be empty")
        instance("generator", generator, (torch.Generator, type(None)), "a torch.Generator or None")
        self.block: int = integer("block", block, 1)
        self.pooled: int = integer("pooled", pooled, 1)
        self.generator = generator
        self._skipped = 0

    def __len__(self) -> int:
        return self.size

    def skip(self, data: int) -> None:
        """Leave out so many ``data`` at the beginning of the next pass, without the cost of drawing their order.

        Raises:
            TypeError: the number is no integer.
            ValueError: it is negative.
        """
        self._skipped = integer("data", data, 0)

    def __iter__(self) -> Iterator[int]:
        skipped, self._skipped = self._skipped, 0
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        generator = torch.Generator().manual_seed(seed)
        blocks = -(-self.size // self.block)
        order = torch.randperm(blocks, generator=generator)
        # A seed for each pool: so a pool can be drawn without those before it.
        seeds = torch.randint(2**62, (-(-blocks // self.pooled),), generator=generator)
        for i in range(len(seeds)):
            pool = order[i * self.pooled : (i + 1) * self.pooled]
            count = self._count(pool)
            if skipped >= count:
                skipped -= count
                continue
            shuffled = self._members(pool)[torch.randperm(count, generator=generator.manual_seed(int(seeds[i])))]
            yield from shuffled[skipped:].tolist()
            skipped = 0

    def _count(self, pool: Tensor) -> int:
        missing = -self.size % self.block  # from the last block
        return len(pool) * self.block - missing * int((pool == (self.size - 1) // self.block).any())

    def _members(self, pool: Tensor) -> Tensor:
        members = (pool[:, None] * self.block + torch.arange(self.block)).flatten()
        return members[members < self.size]
