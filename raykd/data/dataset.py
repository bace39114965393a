"""Data sets, their splits, and the base class of data sources."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raykd.data.augment import Augments
from raykd.data.pixels import PLAIN, Rules
from raykd.input_forms import InputForm, find_form, picture_form
from raykd.registry import Registry, option
from raykd.tasks import Classification, Task

if TYPE_CHECKING:
    from raykd.data.batch import Inputs

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

Fraction = Annotated[
    float, Field(gt=0, lt=1, description="Fraction of the training samples used for validation")
]
TestFraction = Annotated[
    float, Field(gt=0, lt=1, description="Fraction of all samples used for testing")
]
SplitSeed = Annotated[int, Field(ge=0, lt=2**31, description="Random seed of the split")]
Limit = Annotated[int | None, Field(ge=1, description="Maximum number of training samples")]
ValLimit = Annotated[int | None, Field(ge=1, description="Maximum number of validation samples")]
LabelsPerClass = Annotated[
    int | None,
    Field(
        ge=0,
        description="Number of labels of each class in the training split; the other training "
        "samples are unlabeled. null: all are labeled",
    ),
]
ImageSize = Annotated[
    int | None,
    Field(
        ge=1,
        description="Height and width of the images, in pixels. null: those of the files, "
        "which must be equal",
    ),
]
Channels = Annotated[Literal[1, 3], Field(description="Number of channels. 1: grayscale, 3: color")]
Root = Annotated[
    str, Field(min_length=1, description="Folder of the data; downloads are stored there")
]


@dataclass(frozen=True, eq=False)
class Split:
    """Split of a data set in memory.

    Attributes:
        inputs: (N, C, H, W) uint8 for images, or a mapping of (N, ...) tensors.
        targets: (N,) int64 class indices (-100: unlabeled), (N, D) float32 labels or values, or
            (N, H, W) uint8 masks (255: ignored), which a batch has as int64, or (N, boxes, 5)
            float32 boxes: corners in pixels and class (-1: no box).
        index: (N,) int64, number of each sample in the data set (unique over all splits).
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`, without a copy if it is there already."""
        return Split(
            inputs=_to_device(self.inputs, device),
            targets=self.targets.to(device),
            index=self.index.to(device),
        )

    def take(self, rows: Tensor) -> Inputs:
        """Return the inputs of the rows as they are stored."""
        if isinstance(self.inputs, Tensor):
            return self.inputs.index_select(0, rows)
        return {key: value.index_select(0, rows) for key, value in self.inputs.items()}


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Split of a data set of images that is too large for memory; files are decoded on demand.

    Attributes:
        root: folder of `paths`; every worker must be able to read it.
        paths: (N,) file of each sample.
        targets: (N,) int64 class indices.
        index: (N,) int64, as in `Split`.
        shape: (C, H, W) of a decoded image.
        workers: number of decoding processes of a loader; 0: decode in its own process.
        rules: options of the conversion of stored values to 8-bit pixels.
    """

    root: str
    paths: tuple[str, ...]
    targets: Tensor
    index: Tensor
    shape: tuple[int, int, int]
    workers: int
    rules: Rules = PLAIN

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> FileSplit:
        """Return the split with targets and index on `device`; images are moved batch by batch."""
        return dataclasses.replace(
            self, targets=self.targets.to(device), index=self.index.to(device)
        )

    def take(self, rows: Tensor) -> Tensor:
        """Return the decoded images of the rows, (B, C, H, W) uint8 on the CPU."""
        from raykd.data.decode import decode_files

        paths = [self.paths[row] for row in rows.tolist()]
        return decode_files(self.root, paths, self.shape, self.rules)


AnySplit = Split | FileSplit


@dataclass(frozen=True)
class Survey:
    """Summary of the files of a data source, without decoding them.

    Attributes:
        sizes: number of samples in each split.
        class_names: names of the classes, in the order of the class indices.
        notes: sentences on how the data were read: recognized split folders, skipped entries.
        warnings: sentences on possible faults in the data.
        origin: path or package of the data.
    """

    sizes: Mapping[str, int]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class Raw:
    """Original form of samples, if it differs from the form that `Split` stores.

    Attributes:
        maximum: largest value of a pixel; the stored value is round(value * 255 / maximum).
        dtype: name of the NumPy type; empty: the stored type.
        shape: shape of a sample; empty: `Dataset.input_shape`.
        preparation: sentence on the way from files to samples.
        mean, scale: of each column of a table; the stored value is (value - mean) / scale.
    """

    maximum: float = 255.0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    preparation: str = ""
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True)
class InputFacts:
    """Facts of a data set that differ between the inputs of its samples.

    Attributes:
        input_shape, mean, std, raw, categories: as in `Dataset`.
    """

    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    raw: Raw = Raw()
    categories: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data set with its splits.

    Attributes:
        name: name of the source.
        train, val, test: splits.
        classes: number of classes, labels or values: the size of a response.
        class_names: names of the classes, labels or values.
        input_shape: shape of a sample, without the batch dimension.
        mean, std: per channel, of the training split scaled to [0, 1]; empty if the inputs are
            not normalized.
        fingerprint: hex digest of the bytes of all splits (of paths and sizes, for files that
            stay on disk); changes with the data.
        origin: path or package of the data.
        vocabulary: number of tokens of the tokenizer; 0 if the samples are not texts.
        padding: token that fills up short texts.
        notes: sentences on how the data were read: recognized split folders, skipped entries.
        warnings: sentences on possible faults in the data.
        raw: original form of the samples.
        categories: number of codes of each column of categories; these are the last columns.
        target_mean, target_scale: units of the targets: target * scale + mean, one a value; () for
            targets in their own units.
        unlabeled: number of the last training samples, which come from `Source.unlabeled` and are
            drawn at a ratio.
        forms: inputs of its samples that networks may take instead of the whole; (): those of
            images (`raykd.input_forms.picture_form`).
        parts: facts of the inputs that are stored as tensors of their own, by name.
        form: input that `as_input` has chosen; None: the whole sample.
        whole: facts of the whole sample, if `form` is set.
    """

    name: str
    train: AnySplit
    val: AnySplit
    test: AnySplit
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    origin: str
    vocabulary: int = 0
    padding: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    raw: Raw = Raw()
    categories: tuple[int, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()
    unlabeled: int = 0
    forms: tuple[InputForm, ...] = ()
    parts: Mapping[str, InputFacts] = field(default_factory=dict)
    form: InputForm | None = None
    whole: InputFacts | None = None

    @property
    def input(self) -> str | None:
        """Name of the input that networks take; None: the whole sample."""
        return None if self.form is None else self.form.name

    def as_input(self, name: str | None) -> Dataset:
        """Return the data set whose networks take one input of each sample, without copies.

        Splits and fingerprint are those of the whole samples.

        Args:
            name: of the input; None: the whole sample.

        Raises:
            ValueError: the samples have no such input; names the inputs.
        """
        if name == self.input:
            return self
        from raykd.data.inputs import choose_input

        return choose_input(self, name)

    @property
    def data_size(self) -> int:
        """Largest sample number plus one."""
        return 1 + max(int(split.index.max()) for split in (self.train, self.val, self.test))

    @property
    def is_dense(self) -> bool:
        """True if the targets are masks: a class for each position of an image."""
        return self.train.targets.dim() == 3 and not self.has_boxes

    @property
    def has_boxes(self) -> bool:
        """True if the targets are boxes in an image."""
        targets = self.train.targets
        return targets.dim() == 3 and targets.is_floating_point()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of samples in each split, without those of `unlabeled`."""
        return {
            "train": len(self.train) - self.unlabeled,
            "val": len(self.val),
            "test": len(self.test),
        }

    def split(self, part: Literal["train", "val", "test"]) -> AnySplit:
        """Return a split by its name."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]

    def class_counts(self, part: Literal["train", "val", "test"]) -> list[int]:
        """Return the number of samples of each class in a split; [] if samples have no class."""
        targets = self.split(part).targets.cpu()
        if targets.is_floating_point() or self.is_dense:
            return []
        return torch.bincount(targets[targets >= 0], minlength=self.classes).tolist()

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on `device`, to be shared by several loaders."""
        train, val, test = (self.split(part).to(device) for part in PARTS)
        return dataclasses.replace(self, train=train, val=val, test=test)

    def arrays(self) -> dict[str, Any]:
        """Return the data set as NumPy arrays and plain values, for a store that shares arrays.

        Keys of a split are `train/targets`, `train/index` and `train/inputs`, or
        `train/inputs/KEY` if inputs are a mapping.  Data on the CPU are not copied.
        """
        flat: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in PARTS
        }
        for part in PARTS:
            for key, value in _split_arrays(self.split(part)).items():
                flat[f"{part}/{key}"] = value
        return flat

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Dataset:
        """Build a data set from the result of `arrays`, without copies of read-only arrays."""
        plain = {key: value for key, value in arrays.items() if "/" not in key}
        train, val, test = (_split_from(_under(arrays, f"{part}/")) for part in PARTS)
        return cls(**plain, train=train, val=val, test=test)


@option
class Unlabeled:
    """Training samples without labels, from another data source or a folder of images."""

    data: Annotated[
        AnySource | None,
        Field(description="Data source; its training split is used, without its labels"),
    ] = None
    folder: Annotated[
        str | None,
        Field(min_length=1, description="Folder of images, also in folders below it"),
    ] = None
    ratio: Annotated[
        float,
        Field(gt=0, le=100, description="Unlabeled samples for each sample of a batch"),
    ] = 1.0
    limit: Annotated[int | None, Field(ge=1, description="Maximum number of samples")] = None


@option
class Source:
    """Base class of data source options.

    Attributes:
        paper: source of the data: author, year, arXiv number; may be empty.
        augment: augmentations of training images, in this order.
        labels_per_class: labels of each class in the training split; `load` hides the others
            (`raykd.data.few_labels`).
        unlabeled: training samples without labels; `load` adds them (`raykd.data.unlabeled`).

    Class attributes:
        mixes: whether its samples can be mixed with those of other sources: their inputs do not
            depend on the other samples of their source.
        aligned: whether equal positions of two inputs of a sample show the same thing, as pixels of
            an image and of its gray levels do.
    """

    name: str
    paper: ClassVar[str] = ""
    mixes: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    augment: Augments = ()
    labels_per_class: LabelsPerClass = None
    unlabeled: Annotated[
        Unlabeled | None,
        Field(description="Training samples without labels, mixed with those of the data"),
    ] = None

    def __init_subclass__(cls, **rest: object) -> None:
        super().__init_subclass__(**rest)
        if "load" in vars(cls):
            cls.load = _with_label_options(cls.load)  # type: ignore[method-assign]

    def declared_shape(self) -> tuple[tuple[int, ...], int] | None:
        """Return (input shape, classes), or None if they are unknown without reading the data."""
        return None

    def default_task(self) -> Task:
        """Return the task of a study that names none; tasks of the same kind fit the data."""
        return Classification()

    def input_names(self) -> tuple[str, ...] | None:
        """Return the names of the inputs that networks may take; None: those of images."""
        return None

    @property
    def needs_input(self) -> bool:
        """True if no network can take a whole sample."""
        return False

    def check_input(self, name: str) -> None:
        """Check that networks may take this input of a sample, as far as is known without the data.

        Raises:
            ValueError: there is no such input; names the inputs.
        """
        names, declared = self.input_names(), self.declared_shape()
        if names is None and declared is not None:
            find_form(name, (), declared[0])
        elif names is None:
            picture_form(name)
        elif name not in names:
            listed = f"inputs: {', '.join(names)}" if names else "its samples have one input"
            raise ValueError(f"unknown input '{name}' of data '{self.name}'; {listed}")

    def check(self) -> None:
        """Check quickly that the data are available, without a download or decoding.

        Raises:
            ValueError: they are not; names the searched folders and the remedies.
        """

    def survey(self) -> Survey | None:
        """Count classes and samples quickly, without a download or decoding.

        Returns:
            The counts, or None if they are unknown without reading the data.

        Raises:
            ValueError: the data are not available, as in `check`.
        """
        return None

    def load(self) -> Dataset:
        """Read and split the data; download them if necessary.

        Raises:
            ValueError: they are not available; names the searched folders and the remedies.
        """
        raise NotImplementedError


SOURCES = Registry("data source", base=Source, entry_points="raykd.data")
"""Registry of data sources; `raykd.data` fills it."""

AnySource = Annotated[Source, SOURCES]
"""Type of a field that holds a data source."""


def _with_label_options(load: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """Wrap the `load` of a source so that it hides labels and adds samples as the source says."""

    @functools.wraps(load)
    def load_samples(self: Source) -> Dataset:
        data = load(self)
        if self.labels_per_class is not None:
            from raykd.data.few_labels import keep_labels

            data = keep_labels(data, self.labels_per_class, getattr(self, "split_seed", 0))
        if self.unlabeled is not None:
            from raykd.data.unlabeled import add_unlabeled

            data = add_unlabeled(data, self.unlabeled)
        return data

    return load_samples


_FILE_FIELDS = ("root", "paths", "shape", "workers", "rules")
"""Fields of a `FileSplit` that are not arrays."""


def _to_device(inputs: Inputs, device: torch.device | str) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {key: value.to(device) for key, value in inputs.items()}


def _split_arrays(split: AnySplit) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "targets": split.targets.cpu().numpy(),
        "index": split.index.cpu().numpy(),
    }
    if isinstance(split, FileSplit):
        return arrays | {key: getattr(split, key) for key in _FILE_FIELDS}
    if isinstance(split.inputs, Tensor):
        return arrays | {"inputs": split.inputs.cpu().numpy()}
    return arrays | {f"inputs/{key}": value.cpu().numpy() for key, value in split.inputs.items()}


def _split_from(flat: Mapping[str, Any]) -> AnySplit:
    targets, index = _tensor(flat["targets"]), _tensor(flat["index"])
    if "paths" in flat:
        plain = {key: flat[key] for key in _FILE_FIELDS}
        return FileSplit(targets=targets, index=index, **plain)
    if "inputs" in flat:
        return Split(inputs=_tensor(flat["inputs"]), targets=targets, index=index)
    inputs = {key: _tensor(value) for key, value in _under(flat, "inputs/").items()}
    return Split(inputs=inputs, targets=targets, index=index)


def _under(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): flat[key] for key in flat if key.startswith(prefix)}


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # torch warns about the read-only arrays of a shared store; splits are never written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
