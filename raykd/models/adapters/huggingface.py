"""Models of transformers (Hugging Face)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.adapters.hub import hub
from raykd.models.adapters.library import LibraryModel, check_patches, library
from raykd.models.adapters.pretraining_images import read_pretraining_images
from raykd.models.adapters.values import Values
from raykd.models.base import PretrainingImages, Task, Text, picture_shape
from raykd.models.introspection.hooks import first_tensor
from raykd.models.weights.class_order import find_class_names
from raykd.models.weights.files import class_names_beside
from raykd.registry import names_like, option

_OF_DATA = frozenset(
    {"num_labels", "id2label", "label2id", "problem_type", "architectures", "model_type"}
    | {"num_channels", "image_size", "vocab_size", "pad_token_id", "use_cache", "dtype"}
    | {"return_dict", "output_attentions", "output_hidden_states", "transformers_version"}
)
"""What of a configuration follows from the data, or must be as raykd needs it."""


_PADDED_POSITIONS = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"}
    | {"data2vec-text", "ibert", "longformer", "luke", "mpnet", "layoutlmv3", "lilt", "markuplm"}
)
"""Model types whose positions start after that of the padding token."""


@option
class Hf(LibraryModel):
    """A classifier of transformers: `hf/bert`, `hf/./my-folder`, `hf/google/vit-base-patch16-224`.

    NAME is a folder with a `config.json`, an architecture (`bert`, `distilbert`, `vit`, ... in its
    usual configuration) or a model on the hub, in this order.  `config` sets configuration fields;
    classes, channels and the size of the images or of the vocabulary follow from the data.
    Weights are randomly initialized unless `pretrained` is set.  Texts need tokenized data.  Code
    that comes with a model is never run.
    """

    extra = "hf"
    takes_text = True

    name: Annotated[str, names_like("hf/NAME", r"^hf/.+")]
    config: Annotated[
        Values, Field(description="Configuration fields of the model. Can contain domains")
    ] = Values()

    def blueprint(self, task: Task) -> nn.Module:
        transformers = library("transformers", "hf", self.name)
        config = self._configuration(transformers, task)
        with _quiet(transformers), _told_as_value_error(self.name, self.config):
            # deit and levit iterate over it, and it is None in a configuration made here
            config.architectures = config.architectures or []
            network = _family(transformers, task).from_config(config, dtype=torch.float32)
        return logits_only(network)

    def pretraining_images(self) -> PretrainingImages | None:
        return read_pretraining_images(self._folder) if self._folder is not None else None

    def files(self) -> tuple[Path, ...]:
        held = self._folder.iterdir() if self._folder is not None else ()
        return (*super().files(), *sorted(file for file in held if file.is_file()))

    def _pretrained(self, task: Task) -> nn.Module:
        transformers = library("transformers", "hf", self.name)
        if self._folder is None and self.called in transformers.CONFIG_MAPPING:
            raise ValueError(
                f"{self.name} is an architecture and has no weights of its own; write "
                "`pretrained: false`, or name a folder or a model on the hub that has some"
            )
        config = self._configuration(transformers, task)
        with _quiet(transformers), hub(), _told_as_value_error(self.name, self.config):
            network, report = _family(transformers, task).from_pretrained(
                str(self._folder or self.called),
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a classifier for other classes; see below
                output_loading_info=True,
                local_files_only=self._folder is not None,
            )
        self._check_report(report, network, task)
        return logits_only(network)

    def _pretrained_classes(self) -> tuple[str, ...]:
        if self._folder is not None:
            return class_names_beside(self._folder / "config.json")
        return find_class_names(self._usual(library("transformers", "hf", self.name)))

    def _check_report(self, report: Mapping[str, Any], network: nn.Module, task: Task) -> None:
        """See that what was drawn anew is the classifier."""
        for found in report["mismatched_keys"]:
            name = found[0] if isinstance(found, tuple) else str(found)
            layer = network.get_submodule(name.rpartition(".")[0])
            if getattr(layer, "out_features", None) != task.classes:
                raise ValueError(
                    f"the pretrained weights of {self.name} do not fit: {name} is of another "
                    "size there; leave `config` as the weights need it"
                )

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.called).expanduser()
        return folder if folder.is_dir() else None

    def _configuration(self, transformers: ModuleType, task: Task) -> Any:
        usual = self._usual(transformers)
        given = self._checked(usual) | self._of_data(usual, task)
        with _quiet(transformers), _told_as_value_error(self.name, self.config):
            if self._folder is None and self.called in transformers.CONFIG_MAPPING:
                config = type(usual)(**given)
            else:
                config = type(usual).from_dict(usual.to_dict() | given)
        _check_lengths(self.name, config, task)
        _check_family(self.name, transformers, config, task)
        return config

    def _usual(self, transformers: ModuleType) -> Any:
        """The configuration as it is without `config`."""
        if self._folder is not None and not (self._folder / "config.json").is_file():
            raise ValueError(
                f"{self.name}: the folder {self._folder} holds no config.json; write it with "
                "model.save_pretrained(folder)"
            )
        if self._folder is None and self.called in transformers.CONFIG_MAPPING:
            return transformers.AutoConfig.for_model(self.called)
        try:
            with _quiet(transformers), hub():
                return transformers.AutoConfig.from_pretrained(
                    str(self._folder or self.called), local_files_only=self._folder is not None
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(self._unknown(transformers, error)) from None

    def _unknown(self, transformers: ModuleType, error: Exception) -> str:
        if self._folder is not None:
            return f"{self.name}: {self._folder / 'config.json'} cannot be read: {error}"
        close = get_close_matches(self.called, _architectures(transformers), n=3, cutoff=0.6)
        guess = f"; did you mean {' or '.join(f'hf/{one}' for one in close)}?" if close else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"{self.called!r} is neither a folder here ({Path.cwd()}) nor an architecture of "
            f"transformers{guess}, and as a model on the hub it cannot be had ({reason})"
        )

    def _checked(self, usual: Any) -> dict[str, Any]:
        """`config` by the names this architecture has for its fields."""
        known = usual.to_dict()
        told = sorted({*known, *usual.attribute_map} - _OF_DATA - {"_name_or_path"})
        for key in self.config:
            if key in _OF_DATA:
                raise ValueError(f"config: `{key}` follows from the data; leave it out")
            if key not in told:
                close = get_close_matches(key, told, n=1, cutoff=0.6)
                guess = f"; did you mean '{close[0]}'?" if close else ""
                raise ValueError(
                    f"config: {self.name} has no field `{key}`; there are {', '.join(told)}{guess}"
                )
        plain = self.config.plain()
        return {usual.attribute_map.get(key, key): value for key, value in plain.items()}

    def _of_data(self, usual: Any, task: Task) -> dict[str, Any]:
        """What of the configuration follows from the data."""
        if task.text is None:
            channels, height, width = picture_shape(task, self.name)
            given = {"num_channels": channels, "image_size": _side(usual, height, width)}
        else:
            given = {"vocab_size": self._vocabulary(usual, task), "use_cache": False}
            given["pad_token_id"] = task.text.padding
        ends = {} if task.text is None else self._ends(usual, task.text)
        known = {key: value for key, value in given.items() if hasattr(usual, key)}
        return {"num_labels": task.classes} | known | ends

    def _ends(self, usual: Any, text: Text) -> dict[str, Any]:
        """The tokens by which an encoder and decoder find a text's end and begin their own."""
        if not getattr(usual, "is_encoder_decoder", False):
            return {}
        fresh = not self.pretrained and self.weights is None and self._folder is None
        found = {"eos_token_id": text.last} if fresh and text.last is not None else {}
        if getattr(usual, "decoder_start_token_id", None) is None:
            found["decoder_start_token_id"] = text.padding
        return found

    def _vocabulary(self, usual: Any, task: Task) -> int:
        assert task.text is not None
        if not self.pretrained and self.weights is None:
            return task.text.vocabulary
        held = int(getattr(usual, "vocab_size", 0))
        if held < task.text.vocabulary:
            raise ValueError(
                f"the weights of {self.name} know {held} tokens, and the data's tokenizer has "
                f"{task.text.vocabulary}; take the tokenizer that the weights were trained with"
            )
        return held


class LogitsOnly:
    """Mixed into a model of transformers: takes what a batch holds, gives logits alone.

    The model keeps its own class's name and its modules' names, and can be copied and pickled.
    """

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """(B, C, H, W), or a mapping of (B, length) -> (B, classes)."""
        if isinstance(inputs, Tensor):
            given = {"pixel_values": inputs}
        else:
            taken = _arguments(type(self).__mro__[2])
            given = {key: value for key, value in inputs.items() if key in taken}
        output = super().forward(**given)  # type: ignore[misc]
        logits = first_tensor(output)
        assert logits is not None, "a classifier of transformers gives logits"
        return logits

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _revived, (type(self).__mro__[2],), self.__dict__.copy()


def logits_only(network: nn.Module) -> nn.Module:
    """The same network, in place: `network(inputs)` gives logits, whatever it gave before."""
    network.__class__ = _with_logits(type(network))
    return network


@cache
def _with_logits(cls: type) -> type:
    return type(cls.__name__, (LogitsOnly, cls), {"__module__": cls.__module__})


def _revived(cls: type) -> Any:
    mixed: Any = _with_logits(cls)
    return mixed.__new__(mixed)


@cache
def _arguments(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def _family(transformers: ModuleType, task: Task) -> Any:
    if task.text is not None:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForImageClassification


def _architectures(transformers: ModuleType) -> list[str]:
    auto = transformers.models.auto.modeling_auto
    return [
        *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ]


def _side(usual: Any, height: int, width: int) -> Any:
    """The pictures' size as this architecture writes it."""
    if height == width and isinstance(getattr(usual, "image_size", None), int):
        return height
    return [height, width]


def _check_lengths(model: str, config: Any, task: Task) -> None:
    """See that pictures can be cut into whole patches, and that texts are not too long."""
    if task.text is None:
        _, height, width = picture_shape(task, model)
        check_patches(model, getattr(config, "patch_size", None), height, width)
        return
    (length,) = task.input_shape
    held = getattr(config, "max_position_embeddings", None)
    if not isinstance(held, int) or held <= 0:
        return
    most = held - _reserved_positions(config)
    if most < length:
        raise ValueError(
            f"{model} takes texts of at most {most} tokens, the data's have {length}; lower "
            "data.max_length, or raise `config: {max_position_embeddings: ...}`"
            + (f" to {length + held - most}" if most < held else "")
        )


def _reserved_positions(config: Any) -> int:
    """Number of positions that no token takes: RoBERTa counts from the padding token's plus 1."""
    if config.model_type not in _PADDED_POSITIONS:
        return 0
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id  # mpnet's is fixed
    return (padding or 0) + 1


def _check_family(model: str, transformers: ModuleType, config: Any, task: Task) -> None:
    if type(config) in _family(transformers, task)._model_mapping:
        return
    kind = "texts" if task.text is not None else "pictures"
    raise ValueError(
        f"transformers has no classifier of {kind} made of {config.model_type!r} ({model}); take "
        f"{'hf/distilbert' if task.text is not None else 'hf/vit'}, for example"
    )


@contextmanager
def _told_as_value_error(model: str, config: Values) -> Iterator[None]:
    """Whatever transformers objects to is told as a mistake in the study."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        given = f" with config {dict(config)}" if config else ""
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{model} cannot be built{given}: {text}") from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Its reports of what was loaded are for its own users."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
