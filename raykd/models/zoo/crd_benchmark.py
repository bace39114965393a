"""Networks of the CRD benchmark, by its names.

Tian et al. 2020 (arXiv:1910.10699), section 4.1, and their code (HobbitLong/RepDistiller,
`models/`), for CIFAR-100.  Each is one member of a family; to search similar networks, use the
family with these fields.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from raykd.models.base import Model, Signature, format_option
from raykd.models.zoo.mobilenet_v2 import MobilenetV2
from raykd.models.zoo.resnet import Resnet
from raykd.models.zoo.shufflenet_v1 import ShufflenetV1
from raykd.models.zoo.shufflenet_v2 import ShufflenetV2
from raykd.models.zoo.vgg import Vgg
from raykd.models.zoo.wide_resnet import WideResnet
from raykd.registry import option

MEMBERS: dict[str, Model] = {
    **{f"resnet{depth}": Resnet(depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": Resnet(depth=8, width=64, stem=32),
    "resnet32x4": Resnet(depth=32, width=64, stem=32),
    "ResNet50": Resnet(stages=4, block="bottleneck", depth=50, width=64),
    "wrn_16_1": WideResnet(depth=16, widen=1),
    "wrn_16_2": WideResnet(depth=16, widen=2),
    "wrn_40_1": WideResnet(depth=40, widen=1),
    "wrn_40_2": WideResnet(depth=40, widen=2),
    "vgg8": Vgg(depth=8),
    "vgg11": Vgg(depth=11),
    "vgg13": Vgg(depth=13),
    "vgg16": Vgg(depth=16),
    "vgg19": Vgg(depth=19),
    "MobileNetV2": MobilenetV2(width_multiplier=0.5),
    "ShuffleV1": ShufflenetV1(),
    "ShuffleV2": ShufflenetV2(),
}
"""Networks of the benchmark, by name."""


@option
class Published(Model):
    """Base of the networks of the benchmark.

    Class attributes:
        member: the same network as a member of its family.
    """

    paper = "Tian 2020, arXiv:1910.10699"
    member: ClassVar[Model]

    def build(self, signature: Signature) -> nn.Module:
        return self.member.build(signature)


def _published(name: str, member: Model) -> type[Published]:
    namespace = {
        "__module__": __name__,
        "__annotations__": {"name": Literal[name]},
        "__doc__": f"The CRD benchmark's {name}: {format_option(member)}.",
        "name": name,
        "member": member,
    }
    return option(type(f"Crd{name[0].upper()}{name[1:]}", (Published,), namespace))


CRD_BENCHMARK = tuple(_published(name, member) for name, member in MEMBERS.items())
"""Options of the networks, so that a study can use their names."""

# Pickle finds a class by its module and its name.
globals().update({cls.__name__: cls for cls in CRD_BENCHMARK})
