"""Batches of a split, epoch by epoch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.data.augment import Augment, augmented_boxes, augmented_masks, augmented_view
from raykd.data.batch import Batch, BatchRequest, ExtraInputs, Inputs
from raykd.data.dataset import AnySplit, Dataset, FileSplit, Split
from raykd.data.file_loader import FileReader
from raykd.data.rng import CounterRNG, key_of
from raykd.input_forms import WHOLE

# Each use of random numbers has its own key, so that they are independent.
_ORDER = 0x6F72646572
_PARTNERS = 0x706172746E657273
_UNLABELED = 0x756E6C6162656C

SAMPLES_ONLY = ExtraInputs()

EXTRA_VIEW = 1 << 32
"""Offset between the numbers of the extra views; larger than any number of epochs."""


@dataclass(frozen=True)
class Placement:
    """Device of a worker, and its place among the workers that share each batch.

    Attributes:
        device: where batches are used.
        rank: number of this worker, from 0.
        world_size: number of workers.
    """

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class ViewOptions:
    """Views of the samples in a batch.

    Attributes:
        augment: augmentations of images, in this order.
        seed: seed of the augmentations; None: the seed of the order, or 0 without one.
        extra: inputs in addition to the samples.
        balanced: whether the samples of a training epoch are drawn with replacement, with equal
            probability of each class; if not, each is drawn once.
        unlabeled: samples of `Dataset.unlabeled` for each other sample of a training batch.
        more_inputs: the data set as other networks take it (`Dataset.as_input`).
    """

    augment: Sequence[Augment] = ()
    seed: int | None = None
    extra: ExtraInputs = SAMPLES_ONLY
    balanced: bool = False
    unlabeled: float = 0.0
    more_inputs: Sequence[Dataset] = ()


class BatchCount:
    """Number of batches that this process has loaded, a sign of life of its training.

    Attributes:
        total: over all loaders.
    """

    total = 0


ON_CPU = Placement()
UNCHANGED_VIEWS = ViewOptions()


class BatchLoader:
    """Load the batches of one split for one worker.

    Images are stored on the device as uint8 and returned as float32, (x / 255 - mean) / std; other
    inputs are returned as they are stored.  (Storing float images takes four times the memory
    and saves half a millisecond in an epoch of 6,000 Fashion-MNIST images.)  If networks take one
    input of each sample (`Dataset.as_input`), it is taken from the augmented images.

    Training (with a `shuffle_seed`): the order is a pure function of (shuffle_seed, epoch), the
    same for every number of workers.  Each global batch is divided among the ranks, whose shares
    differ by at most one sample, and every rank gets the same number of batches.  If the last
    batch would give a rank fewer than 2 samples (on which batch norm fails), it is merged into
    the one before, unless `batch_size` itself is 1 per rank.

    Evaluation (no `shuffle_seed`): the stored order; rank r takes samples r, r + world_size, ...;
    no sample is skipped or repeated, and ranks may get different numbers of batches, so no
    collective operation may run inside the loop.

    The unlabeled samples of the data set (`Dataset.unlabeled`, training only) are added to the
    batches of the others: after n of these, round(n * ratio) unlabeled ones.  They are drawn in
    turn, each equally often, as a pure function of (shuffle_seed, epoch).

    Extra inputs are on the rank of their sample, and change neither the samples, their order nor
    the number of batches.  Extra view k in an epoch has number epoch + k `EXTRA_VIEW`.  The
    partner of a sample is drawn uniformly from the other samples of its class in the split, as a
    pure function of (shuffle_seed, epoch, sample); a sample that is the only one of its class is
    its own partner.  Partners are seen in yet another view.

    Args:
        split: the samples; moved once, here, if they are on another device.
        dataset: the data set of the split (for mean and std).
        batch_size: samples in a global batch, over all ranks, without unlabeled ones.
        shuffle_seed: seed of the order of training batches; None: evaluation.
        views: augmentations, and inputs in addition to the samples.
        placement: device, rank and number of workers.

    Raises:
        ValueError: the split is too small for this number of ranks, or its inputs are not images
            but are to be augmented.
    """

    def __init__(
        self,
        split: AnySplit,
        dataset: Dataset,
        *,
        batch_size: int,
        shuffle_seed: int | None,
        views: ViewOptions = UNCHANGED_VIEWS,
        placement: Placement = ON_CPU,
    ) -> None:
        self.device = torch.device(placement.device)
        self.rank, self.world_size = placement.rank, placement.world_size
        assert 0 <= self.rank < self.world_size
        self.split = split.to(self.device)
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.augment, self.extra = tuple(views.augment), views.extra
        self.balanced = views.balanced
        self._seed = 0 if shuffle_seed is None else shuffle_seed
        self._view_seed = self._seed if views.seed is None else views.seed
        self._normalize = _Normalization(dataset, self.device)
        self._more_inputs = {
            data.input or WHOLE: _Normalization(data, self.device) for data in views.more_inputs
        }
        self._unlabeled = 0 if shuffle_seed is None else dataset.unlabeled
        # Sizes of the global batches in training, of this rank's batches in evaluation.
        self._sizes = self._share_sizes() if shuffle_seed is None else self._global_sizes()
        # Numbers of unlabeled samples in the global batches.
        ratio = views.unlabeled if self._unlabeled else 0.0
        ends = [round(n * ratio) for n in itertools.accumulate(self._sizes)]
        self._unlabeled_sizes = [last - first for first, last in itertools.pairwise([0, *ends])]
        if self.augment and not _is_images(split):
            raise ValueError(
                "augmentation needs images, (N, C, H, W) uint8; set data.augment to []"
            )
        self._reader = FileReader(split, self.device) if isinstance(split, FileSplit) else None
        # Files are read by processes on the CPU, which need the rows there.
        self._row_device = torch.device("cpu") if self._reader is not None else self.device
        self._partners = PartnerSampler(split, self._row_device) if self.extra.partners else None

    def __len__(self) -> int:
        return len(self._sizes)

    def global_size(self, step: int) -> int:
        """Return the number of samples in a training batch, over all ranks."""
        return self._sizes[step] + self._unlabeled_sizes[step]

    def epoch(
        self, epoch: int, *, view: int | None = None, steps: int | None = None
    ) -> Iterator[Batch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: counted from 0.
            view: number of the view of each sample; None: `epoch`.
            steps: stop after this number of batches; None: the whole epoch.
        """
        first = epoch if view is None else view
        rows = self._rows(epoch)[:steps]
        return self._read([self._request(batch, epoch, first) for batch in rows])

    def read_rows(self, rows: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """Iterate over batches of given rows of the split, without extra inputs.

        Args:
            rows: (B,) int64 for each batch, on the CPU.
            view: number of the view of each sample.
        """
        return self._read([BatchRequest(batch.to(self._row_device), (view,)) for batch in rows])

    def _request(self, rows: Tensor, epoch: int, first: int) -> BatchRequest:
        *views, last = (first + k * EXTRA_VIEW for k in range(self.extra.views + 2))
        if self._partners is None:
            return BatchRequest(rows, tuple(views))
        partners = self._partners.sample(rows, self._seed, epoch)
        return BatchRequest(rows, tuple(views), partners, last)

    def _read(self, requests: Sequence[BatchRequest]) -> Iterator[Batch]:
        if self._reader is not None:
            batches = self._reader.read(requests, self.augment, self._view_seed)
        else:
            batches = map(self._gather, requests)
        for batch in batches:
            BatchCount.total += 1
            normalized = batch.map(self._normalize)
            if self._more_inputs:
                more = {name: form(batch.inputs) for name, form in self._more_inputs.items()}
                normalized = dataclasses.replace(normalized, more_inputs=more)
            yield normalized

    def _gather(self, request: BatchRequest) -> Batch:
        """Return a batch of a resident split, not yet normalized."""
        index, stored = self._take(request.rows)
        first, *more = [self._view(stored, index, view) for view in request.views]
        targets = self.split.targets.index_select(0, request.rows)
        if targets.dim() == 3:
            targets = self._moved(targets, index, request.views[0])
        partners = None
        if request.partners is not None:
            partner_index, partner_inputs = self._take(request.partners)
            partners = self._view(partner_inputs, partner_index, request.partner_view)
        return Batch(first, targets, index, tuple(more), partners, request.views[0])

    def _take(self, rows: Tensor) -> tuple[Tensor, Inputs]:
        return self.split.index.index_select(0, rows), self.split.take(rows)

    def _view(self, inputs: Inputs, index: Tensor, view: int) -> Inputs:
        if not self.augment or not isinstance(inputs, Tensor):
            return inputs
        return augmented_view(inputs, index, self.augment, seed=self._view_seed, view=view)

    def _moved(self, targets: Tensor, index: Tensor, view: int) -> Tensor:
        """Return masks, as int64, or boxes, moved as the images of a view."""
        if targets.is_floating_point():
            if not self.augment:
                return targets
            assert isinstance(self.split, Split) and isinstance(self.split.inputs, Tensor)
            sides = (self.split.inputs.shape[2], self.split.inputs.shape[3])
            return augmented_boxes(
                targets, index, self.augment, seed=self._view_seed, view=view, sides=sides
            )
        masks = targets.to(torch.uint8)
        if self.augment:
            masks = augmented_masks(masks, index, self.augment, seed=self._view_seed, view=view)
        return masks.long()

    def _rows(self, epoch: int) -> Sequence[Tensor]:
        """Return the rows of this rank in each batch, on the device that images are read from."""
        if self.shuffle_seed is None:
            rows = torch.arange(len(self.split), device=self._row_device)
            return rows[self.rank :: self.world_size].split(self._sizes)
        generator = torch.Generator().manual_seed(key_of(_ORDER, self._seed, epoch) >> 1)
        order = self._order(generator).to(self._row_device)
        batches = order.split(self._sizes)
        if any(self._unlabeled_sizes):
            batches = self._with_unlabeled(batches, epoch)
        return [batch[self.rank :: self.world_size] for batch in batches]

    def _with_unlabeled(self, batches: Sequence[Tensor], epoch: int) -> list[Tensor]:
        """Add rows of unlabeled samples to the batches of an epoch."""
        count, total = sum(self._unlabeled_sizes), self._unlabeled
        first = epoch * count
        turns = range(first // total, (first + count - 1) // total + 1)
        keys = [key_of(_UNLABELED, self._seed, turn) >> 1 for turn in turns]
        generators = [torch.Generator().manual_seed(key) for key in keys]
        orders = [torch.randperm(total, generator=each) for each in generators]
        rows = torch.cat(orders)[first % total :][:count] + self._labeled
        drawn = rows.to(self._row_device).split(self._unlabeled_sizes)
        return [torch.cat(pair) for pair in zip(batches, drawn, strict=True)]

    @property
    def _labeled(self) -> int:
        """Number of samples that are not of `Dataset.unlabeled`."""
        return len(self.split) - self._unlabeled

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the rows of an epoch: each once, or drawn with equal probability of each class."""
        total = self._labeled
        if not self.balanced:
            return torch.randperm(total, generator=generator)
        targets = self.split.targets.cpu()
        by_class, sizes = targets.argsort(stable=True), targets.bincount()
        starts = (sizes.cumsum(0) - sizes)[sizes > 0]
        sizes = sizes[sizes > 0]
        classes = torch.randint(len(sizes), (total,), generator=generator)
        places = torch.rand(total, generator=generator, dtype=torch.float64) * sizes[classes]
        return by_class[starts[classes] + places.long()]

    def _global_sizes(self) -> list[int]:
        """Return the number of samples in each global batch."""
        total, size = self._labeled, self.batch_size
        least = min(2, size // self.world_size) * self.world_size
        if least == 0 or total < least:
            raise ValueError(
                f"batches of {size} from {total} training samples do not give each of "
                f"{self.world_size} worker(s) a share; lower train.batch_size to at most {total}, "
                f"raise it to at least {self.world_size}, or lower cluster.workers_per_trial"
            )
        sizes, rest = [size] * (total // size), total % size
        if 0 < rest < least:
            return [*sizes[:-1], size + rest]
        return [*sizes, rest] if rest else sizes

    def _share_sizes(self) -> list[int]:
        """Return the number of samples in each batch of this rank."""
        total = len(range(self.rank, len(self.split), self.world_size))
        size = max(1, self.batch_size // self.world_size)
        rest = total % size
        return [size] * (total // size) + ([rest] if rest else [])


class PartnerSampler:
    """Draw for each sample a partner: another sample of its class in a split.

    Args:
        split: the samples.
        device: device of the rows.
    """

    def __init__(self, split: AnySplit, device: torch.device) -> None:
        self._targets = split.targets.to(device)
        self._index = split.index.to(device)
        self._sizes = self._targets.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._by_class = self._targets.argsort(stable=True)
        self._place = torch.empty_like(self._by_class)
        self._place[self._by_class] = torch.arange(len(split), device=device)

    def sample(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """(B,) rows -> (B,) rows of their partners: a pure function of (seed, epoch, sample).

        A sample that is the only one of its class is its own partner.
        """
        targets = self._targets[rows]
        size, start = self._sizes[targets], self._starts[targets]
        rng = CounterRNG(key_of(_PARTNERS, seed, epoch), self._index[rows])
        ahead = 1 + ((rng.below(1 << 31) * (size - 1)) >> 31)  # 1 ... size - 1
        return self._by_class[start + (self._place[rows] - start + ahead) % size]


class _Normalization:
    """Samples as they are stored -> as a network takes them.

    (B, C, H, W) uint8 become float32, (x / 255 - mean) / std; other inputs are left alone.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        std = torch.tensor(dataset.std, dtype=torch.float64)
        mean = torch.tensor(dataset.mean, dtype=torch.float64)
        shape = (1, -1, 1, 1)
        self.form = dataset.form
        # A delivered network computes the same (raykd.models.preprocessing).
        self.scale = (1 / (255 * std)).float().reshape(shape).to(device)
        self.shift = (-mean / std).float().reshape(shape).to(device)

    def __call__(self, inputs: Inputs) -> Inputs:
        if self.form is not None:
            inputs = self.form.take(inputs)
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
            return inputs
        if not self.scale.numel():
            return inputs.float().div_(255)
        return inputs.float().mul_(self.scale).add_(self.shift)


def _is_images(split: AnySplit) -> bool:
    if isinstance(split, FileSplit):
        return True
    inputs = split.inputs
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4
