"""Batches of a split, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raykd.data.augment import Augment
from raykd.data.batch import Batch, Beside, Inputs
from raykd.data.draws import key_of
from raykd.data.file_reader import FileReader
from raykd.data.partners import Partners
from raykd.data.source import AnySplit, Dataset, FileSplit
from raykd.data.views import Wanted, view

_ORDER = 0x6F72646572  # keeps the order's random numbers apart from the views'

ANOTHER = 1 << 32
"""Added to a view's number for a further view; more than there are epochs."""

NOTHING = Beside()


class Batches:
    """The batches of one split, as one worker of `world` sees them.

    Pictures lie on the device as uint8 and leave as float32, (x / 255 - mean) / std; other
    inputs leave as they are stored.  A float copy of the pictures was tried: it takes four times
    the memory and saves half a millisecond in an epoch of 6,000 Fashion-MNIST images.

    Training (`shuffle`): the order is a pure function of (seed, epoch), the same for every
    `world`.  Each global batch is dealt out among the ranks, whose shares differ by one sample
    at most, and every rank gets the same number of batches.  Where the last batch would give a
    rank less than 2 samples (on which batch norm fails) it is merged into the one before; a
    `batch_size` of 1 a rank is taken as meant.

    What lies beside a sample goes where the sample goes.  View k of `beside.views` in an epoch is
    view number epoch + k `ANOTHER`.  Each sample's partner in an epoch is drawn evenly from the
    others of its class in the split, whatever batch they are in (the sample itself where it has
    the class to itself), as a pure function of (seed, epoch, sample); of the partners yet another
    view is taken.  Neither changes the samples, their order or the number of batches.

    Evaluation (no `shuffle`): stored order, rank r takes samples r, r + world, ...; none is lost
    or seen twice, and ranks may get unequal numbers of batches, so no collective may stand
    inside the loop.

    Args:
        split: which samples; on another device than `device` it is moved once, here.
        dataset: what they belong to (for mean and std).
        batch_size: samples of a global batch, all ranks together.
        seed: of the order, and of the views where `view_seed` is None.
        shuffle: training (see above), or evaluation.
        augment: what is done to the pictures.
        device: where batches are wanted.
        rank, world: this worker's number, and how many there are.
        drop_last: leave out an incomplete last batch.
        beside: what is wanted beside the samples.
        view_seed: of the views; None: `seed`.

    Raises:
        ValueError: the split is too small for these ranks, or its inputs are no pictures but are
            to be augmented.
    """

    def __init__(
        self,
        split: AnySplit,
        *,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        shuffle: bool,
        augment: Sequence[Augment] = (),
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        beside: Beside = NOTHING,
        view_seed: int | None = None,
    ) -> None:
        assert 0 <= rank < world
        self.device = torch.device(device)
        self.split = split.to(self.device)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.view_seed = seed if view_seed is None else view_seed
        self.augment = tuple(augment)
        self.rank, self.world = rank, world
        self._normalized = _Normalization(dataset, self.device)
        self._sizes = self._training_sizes(drop_last) if shuffle else self._share_sizes(drop_last)
        if self.augment and not _is_pictures(split):
            raise ValueError(
                "augmentation is for pictures, (N, C, H, W) uint8; set data.augment to []"
            )
        self._reader = FileReader(split, self.device) if isinstance(split, FileSplit) else None
        self._rows_on = torch.device("cpu") if self._reader is not None else self.device
        self._beside = beside
        self._partners = Partners(split, self._rows_on) if beside.partners else None

    def __len__(self) -> int:
        return len(self._sizes)

    def epoch(self, epoch: int, view: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: counted from 0.
            view: which view of each sample; None: view number `epoch`.
        """
        return self._read(self._wanted(epoch, epoch if view is None else view))

    def of_rows(self, rows: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """Batches of those rows of the split, in that order; nothing lies beside the samples.

        Args:
            rows: (B,) int64 each, on the CPU.
            view: which view of each sample.
        """
        return self._read([Wanted(batch.to(self._rows_on), (view,)) for batch in rows])

    def _read(self, wanted: list[Wanted]) -> Iterator[Batch]:
        if self._reader is not None:
            read = self._reader.epoch(wanted, self.augment, self.view_seed)
        else:
            read = map(self._gathered, wanted)
        return (batch.map(self._normalized) for batch in read)

    def _wanted(self, epoch: int, number: int) -> list[Wanted]:
        """What this rank reads in an epoch."""
        numbers = [number + k * ANOTHER for k in range(self._beside.views + 2)]
        own, theirs = tuple(numbers[:-1]), numbers[-1]
        partners = self._partners
        if partners is None:
            return [Wanted(rows, own) for rows in self._rows(epoch)]
        return [
            Wanted(rows, own, partners.of(rows, self.seed, epoch), theirs)
            for rows in self._rows(epoch)
        ]

    def _gathered(self, wanted: Wanted) -> Batch:
        """A batch of a resident split, not yet normalized."""
        index = self.split.index.index_select(0, wanted.rows)
        stored = self.split.take(wanted.rows)
        first, *more = [self._view(stored, index, number) for number in wanted.numbers]
        targets = self.split.targets.index_select(0, wanted.rows)
        partners = None
        if wanted.partners is not None:
            theirs = self.split.index.index_select(0, wanted.partners)
            taken = self.split.take(wanted.partners)
            partners = self._view(taken, theirs, wanted.partners_number)
        return Batch(first, targets, index, tuple(more), partners, wanted.numbers[0])

    def _view(self, inputs: Inputs, index: Tensor, number: int) -> Inputs:
        if not self.augment or not isinstance(inputs, Tensor):
            return inputs
        return view(inputs, index, self.augment, seed=self.view_seed, number=number)

    def _rows(self, epoch: int) -> Sequence[Tensor]:
        """This rank's rows of each batch of an epoch, on the device its pictures are read from."""
        if not self.shuffle:
            share = torch.arange(len(self.split), device=self._rows_on)[self.rank :: self.world]
            return share[: sum(self._sizes)].split(self._sizes)
        generator = torch.Generator().manual_seed(key_of(_ORDER, self.seed, epoch) >> 1)
        order = torch.randperm(len(self.split), generator=generator).to(self._rows_on)
        batches = order[: sum(self._sizes)].split(self._sizes)
        return [batch[self.rank :: self.world] for batch in batches]

    def _training_sizes(self, drop_last: bool) -> list[int]:
        """Samples of each global batch."""
        total, size = len(self.split), self.batch_size
        least = min(2, size // self.world) * self.world
        if least == 0 or total < least or (drop_last and total < size):
            raise ValueError(
                f"batches of {size} from {total} training samples do not give each of "
                f"{self.world} worker(s) a share; lower train.batch_size to at most {total}, "
                f"raise it to at least {self.world}, or lower cluster.workers_per_trial"
            )
        sizes, rest = [size] * (total // size), total % size
        if rest == 0 or drop_last:
            return sizes
        if rest < least:
            return [*sizes[:-1], size + rest]
        return [*sizes, rest]

    def _share_sizes(self, drop_last: bool) -> list[int]:
        """Samples of each of this rank's own batches."""
        total = len(range(self.rank, len(self.split), self.world))
        size = max(1, self.batch_size // self.world)
        rest = total % size
        return [size] * (total // size) + ([rest] if rest and not drop_last else [])


class _Normalization:
    """(B, C, H, W) uint8 -> float32, (x / 255 - mean) / std; anything else as it is."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        std = torch.tensor(dataset.std, dtype=torch.float64)
        mean = torch.tensor(dataset.mean, dtype=torch.float64)
        shape = (1, -1, 1, 1)
        # The network that is delivered computes the same (raykd.architecture.delivered).
        self.scale = (1 / (255 * std)).float().reshape(shape).to(device)
        self.shift = (-mean / std).float().reshape(shape).to(device)

    def __call__(self, inputs: Inputs) -> Inputs:
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
            return inputs
        if not self.scale.numel():
            return inputs.float().div_(255)
        return inputs.float().mul_(self.scale).add_(self.shift)


def _is_pictures(split: AnySplit) -> bool:
    if isinstance(split, FileSplit):
        return True
    inputs = split.inputs
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4
