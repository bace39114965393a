"""Zero-cost proxies: rank architectures without training them."""

from raykd.architecture.screens.diswot import Diswot
from raykd.architecture.screens.naswot import Naswot
from raykd.architecture.screens.screen import (
    Measured,
    Ranking,
    Scorer,
    Screen,
    Screening,
    Unscreened,
)
from raykd.architecture.screens.size import Macs, Params
from raykd.architecture.screens.zen import Zen
from raykd.option import Family

SCREENS = Family(
    "screen",
    [Unscreened, Params, Macs, Naswot, Zen, Diswot],
    group="raykd.screens",
    base=Screen,
)

__all__ = [
    "SCREENS",
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
