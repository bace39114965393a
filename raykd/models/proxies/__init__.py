"""Zero-cost proxies: rank architectures without training them."""

from raykd.models.proxies.base import (
    PROXIES,
    AnyProxy,
    NetworkProxy,
    NoProxy,
    Proxy,
    ProxyContext,
    RankingProxy,
    Scorer,
)
from raykd.models.proxies.diswot import Diswot
from raykd.models.proxies.naswot import Naswot
from raykd.models.proxies.size import Macs, Params
from raykd.models.proxies.zen import Zen

PROXIES.add(NoProxy, Params, Macs, Naswot, Zen, Diswot)

__all__ = [
    "PROXIES",
    "AnyProxy",
    "Diswot",
    "Macs",
    "Naswot",
    "NetworkProxy",
    "NoProxy",
    "Params",
    "Proxy",
    "ProxyContext",
    "RankingProxy",
    "Scorer",
    "Zen",
]
