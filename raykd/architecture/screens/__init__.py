"""Zero-cost proxies: rank architectures without training them."""

from raykd.architecture.screens.diswot import Diswot
from raykd.architecture.screens.naswot import Naswot
from raykd.architecture.screens.screen import (
    SCREENS,
    AnyScreen,
    Measured,
    Ranking,
    Scorer,
    Screen,
    Screening,
    Unscreened,
)
from raykd.architecture.screens.size import Macs, Params
from raykd.architecture.screens.zen import Zen

SCREENS.add(Unscreened, Params, Macs, Naswot, Zen, Diswot)

__all__ = [
    "SCREENS",
    "AnyScreen",
    "Diswot",
    "Macs",
    "Measured",
    "Naswot",
    "Params",
    "Ranking",
    "Scorer",
    "Screen",
    "Screening",
    "Unscreened",
    "Zen",
]
