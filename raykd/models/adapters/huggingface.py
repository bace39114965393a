"""Models of transformers (Hugging Face)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
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
from raykd.models.base import PretrainingImages, Signature, Text, image_shape
from raykd.models.introspection.hooks import first_tensor
from raykd.models.weights.class_order import find_class_names
from raykd.models.weights.files import class_names_beside
from raykd.registry import names_like, option

_RESERVED = frozenset(
    {"num_labels", "id2label", "label2id", "problem_type", "architectures", "model_type"}
    | {"num_channels", "image_size", "vocab_size", "pad_token_id", "use_cache", "dtype"}
    | {"return_dict", "output_attentions", "output_hidden_states", "transformers_version"}
)
"""Configuration fields that raykd sets, from the data or as it needs them."""


_PADDED_POSITIONS = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"}
    | {"data2vec-text", "ibert", "longformer", "luke", "mpnet", "layoutlmv3", "lilt", "markuplm"}
)
"""Model types whose positions start after that of the padding token."""


@option
class Hf(LibraryModel):
    """A classifier of transformers: `hf/bert`, `hf/./my-folder`, `hf/google/vit-base-patch16-224`.

    NAME is a folder with a `config.json`, an architecture (`bert`, `distilbert`, `vit`, ... in its
    default configuration) or a model on the hub, in this order.  `config` sets configuration
    fields; classes, channels, image size and vocabulary size are set from the data.  Weights are
    randomly initialized unless `pretrained` is set.  Texts need tokenized data.  Code that comes
    with a model never runs.
    """

    extra = "hf"
    takes_text = True

    name: Annotated[str, names_like("hf/NAME", r"^hf/.+")]
    config: Annotated[
        Values, Field(description="Configuration fields of the model. Can contain domains")
    ] = Values()

    @classmethod
    def library_names(cls) -> Sequence[str]:
        return _architectures(library("transformers", "hf", "hf/NAME"))

    def blueprint(self, signature: Signature) -> nn.Module:
        transformers = library("transformers", "hf", self.name)
        config = self._configuration(transformers, signature)
        with _quiet(transformers), _errors_as_value_error(self.name, self.config):
            # None in a new configuration, but deit and levit iterate over it
            config.architectures = config.architectures or []
            network = _auto_class(transformers, signature).from_config(config, dtype=torch.float32)
        return logits_only(network)

    def pretraining_images(self) -> PretrainingImages | None:
        return read_pretraining_images(self._folder) if self._folder is not None else None

    def files(self) -> tuple[Path, ...]:
        paths = self._folder.iterdir() if self._folder is not None else ()
        return (*super().files(), *sorted(path for path in paths if path.is_file()))

    def _pretrained(self, signature: Signature) -> nn.Module:
        transformers = library("transformers", "hf", self.name)
        if self._folder is None and self.library_name in transformers.CONFIG_MAPPING:
            raise ValueError(
                f"{self.name} is an architecture without pretrained weights; set "
                "`pretrained: false`, or name a folder or a model on the hub with weights"
            )
        config = self._configuration(transformers, signature)
        with _quiet(transformers), hub(), _errors_as_value_error(self.name, self.config):
            network, report = _auto_class(transformers, signature).from_pretrained(
                str(self._folder or self.library_name),
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # the classifier of other classes; checked below
                output_loading_info=True,
                local_files_only=self._folder is not None,
            )
        self._check_report(report, network, signature)
        return logits_only(network)

    def _pretrained_classes(self) -> tuple[str, ...]:
        if self._folder is not None:
            return class_names_beside(self._folder / "config.json")
        return find_class_names(self._default_config(library("transformers", "hf", self.name)))

    def _check_report(
        self, report: Mapping[str, Any], network: nn.Module, signature: Signature
    ) -> None:
        """Raise ValueError unless the classifier is the only layer with new weights."""
        for key in report["mismatched_keys"]:
            name = key[0] if isinstance(key, tuple) else str(key)
            layer = network.get_submodule(name.rpartition(".")[0])
            if getattr(layer, "out_features", None) != signature.classes:
                raise ValueError(
                    f"the pretrained weights of {self.name} do not fit: {name} has another size in "
                    "them; remove the fields of `config` that change it"
                )

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.library_name).expanduser()
        return folder if folder.is_dir() else None

    def _configuration(self, transformers: ModuleType, signature: Signature) -> Any:
        default = self._default_config(transformers)
        fields = self._user_fields(default) | self._data_fields(default, signature)
        with _quiet(transformers), _errors_as_value_error(self.name, self.config):
            if self._folder is None and self.library_name in transformers.CONFIG_MAPPING:
                config = type(default)(**fields)
            else:
                config = type(default).from_dict(default.to_dict() | fields)
        _check_input_size(self.name, config, signature)
        _check_architecture(self.name, transformers, config, signature)
        return config

    def _default_config(self, transformers: ModuleType) -> Any:
        """Return the configuration without the fields of `config`."""
        if self._folder is not None and not (self._folder / "config.json").is_file():
            raise ValueError(
                f"{self.name}: the folder {self._folder} has no config.json; write it with "
                "model.save_pretrained(folder)"
            )
        if self._folder is None and self.library_name in transformers.CONFIG_MAPPING:
            return transformers.AutoConfig.for_model(self.library_name)
        try:
            with _quiet(transformers), hub():
                return transformers.AutoConfig.from_pretrained(
                    str(self._folder or self.library_name),
                    local_files_only=self._folder is not None,
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(self._not_found(transformers, error)) from None

    def _not_found(self, transformers: ModuleType, error: Exception) -> str:
        if self._folder is not None:
            return f"{self.name}: {self._folder / 'config.json'} is not readable: {error}"
        close = get_close_matches(self.library_name, _architectures(transformers), n=3, cutoff=0.6)
        guess = f"; did you mean {' or '.join(f'hf/{name}' for name in close)}?" if close else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"{self.library_name!r} is neither a folder here ({Path.cwd()}) nor an architecture of "
            f"transformers{guess}, and it could not be loaded from the hub ({reason})"
        )

    def _user_fields(self, default: Any) -> dict[str, Any]:
        """Return the fields of `config` under the names of this architecture."""
        fields = {*default.to_dict(), *default.attribute_map} - _RESERVED - {"_name_or_path"}
        names = sorted(fields)
        for key in self.config:
            if key in _RESERVED:
                raise ValueError(f"config: `{key}` is set from the data; remove it")
            if key not in names:
                close = get_close_matches(key, names, n=1, cutoff=0.6)
                guess = f"; did you mean '{close[0]}'?" if close else ""
                raise ValueError(
                    f"config: {self.name} has no field `{key}`; allowed are "
                    f"{', '.join(names)}{guess}"
                )
        plain = self.config.plain()
        return {default.attribute_map.get(key, key): value for key, value in plain.items()}

    def _data_fields(self, default: Any, signature: Signature) -> dict[str, Any]:
        """Return the configuration fields that are set from the data."""
        if signature.text is None:
            channels, height, width = image_shape(signature, self.name)
            fields = {"num_channels": channels, "image_size": _image_size(default, height, width)}
        else:
            fields = {"vocab_size": self._vocabulary(default, signature), "use_cache": False}
            fields["pad_token_id"] = signature.text.padding
        tokens = {} if signature.text is None else self._special_tokens(default, signature.text)
        existing = {key: value for key, value in fields.items() if hasattr(default, key)}
        return {"num_labels": signature.classes} | existing | tokens

    def _special_tokens(self, default: Any, text: Text) -> dict[str, Any]:
        """Return the end and start tokens of an encoder-decoder model."""
        if not getattr(default, "is_encoder_decoder", False):
            return {}
        is_new = not self.pretrained and self.weights is None and self._folder is None
        tokens = {"eos_token_id": text.last} if is_new and text.last is not None else {}
        if getattr(default, "decoder_start_token_id", None) is None:
            tokens["decoder_start_token_id"] = text.padding
        return tokens

    def _vocabulary(self, default: Any, signature: Signature) -> int:
        assert signature.text is not None
        if not self.pretrained and self.weights is None:
            return signature.text.vocabulary
        size = int(getattr(default, "vocab_size", 0))
        if size < signature.text.vocabulary:
            raise ValueError(
                f"the weights of {self.name} have {size} tokens, and the "
                f"{'data' if signature.whole is None else 'input'}'s tokenizer has "
                f"{signature.text.vocabulary}; use the tokenizer that the weights were trained with"
            )
        return size


class LogitsOnly:
    """Mixin for models of transformers: takes the inputs of a batch, returns only logits.

    The names of the class and of its modules do not change, and the model can be copied and
    pickled.
    """

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, classes) of (B, C, H, W), or of a mapping of (B, length)."""
        if isinstance(inputs, Tensor):
            kwargs = {"pixel_values": inputs}
        else:
            names = _parameters(type(self).__mro__[2])
            kwargs = {key: value for key, value in inputs.items() if key in names}
        output = super().forward(**kwargs)  # type: ignore[misc]
        logits = first_tensor(output)
        assert logits is not None, "a classifier of transformers returns logits"
        return logits

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _new_instance, (type(self).__mro__[2],), self.__dict__.copy()


def logits_only(network: nn.Module) -> nn.Module:
    """Make a network, in place, return only logits."""
    # Changes the class, not the modules: their names are those of the pretrained weights.
    network.__class__ = _with_logits(type(network))
    return network


@cache
def _with_logits(cls: type) -> type:
    return type(cls.__name__, (LogitsOnly, cls), {"__module__": cls.__module__})


def _new_instance(cls: type) -> Any:
    mixed: Any = _with_logits(cls)
    return mixed.__new__(mixed)


@cache
def _parameters(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def _auto_class(transformers: ModuleType, signature: Signature) -> Any:
    if signature.text is not None:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForImageClassification


def _architectures(transformers: ModuleType) -> list[str]:
    auto = transformers.models.auto.modeling_auto
    return [
        *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ]


def _image_size(default: Any, height: int, width: int) -> int | list[int]:
    """Return the image size in the form of this architecture."""
    if height == width and isinstance(getattr(default, "image_size", None), int):
        return height
    return [height, width]


def _check_input_size(model: str, config: Any, signature: Signature) -> None:
    """Raise ValueError unless patches divide the images, and texts are short enough."""
    if signature.text is None:
        _, height, width = image_shape(signature, model)
        check_patches(model, getattr(config, "patch_size", None), height, width)
        return
    (length,) = signature.input_shape
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return
    most = positions - _reserved_positions(config)
    if most < length:
        key = signature.text_key("max_length")
        raise ValueError(
            f"{model} takes texts of at most {most} tokens, the data have {length}; decrease "
            f"{key}, or increase `config: {{max_position_embeddings: ...}}`"
            + (f" to {length + positions - most}" if most < positions else "")
        )


def _reserved_positions(config: Any) -> int:
    """Return the number of unused positions: RoBERTa starts after that of the padding token."""
    if config.model_type not in _PADDED_POSITIONS:
        return 0
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id  # mpnet's is fixed
    return (padding or 0) + 1


def _check_architecture(
    model: str, transformers: ModuleType, config: Any, signature: Signature
) -> None:
    # `_model_mapping` is private in transformers 5.23; there is no public list of configurations.
    if type(config) in _auto_class(transformers, signature)._model_mapping:
        return
    kind = "texts" if signature.text is not None else "images"
    raise ValueError(
        f"transformers has no classifier of {kind} with architecture {config.model_type!r} "
        f"({model}); use {'hf/distilbert' if signature.text is not None else 'hf/vit'}, for example"
    )


@contextmanager
def _errors_as_value_error(model: str, config: Values) -> Iterator[None]:
    """Convert errors of transformers to a ValueError that names the model."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        with_config = f" with config {dict(config)}" if config else ""
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{model} cannot be built{with_config}: {text}") from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Hide the log messages and progress bars of transformers."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()
