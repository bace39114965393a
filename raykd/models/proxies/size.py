"""Model size as a proxy: the baseline of all other proxies."""

from __future__ import annotations

from typing import Literal

from raykd.models.introspection.profile import profile_model
from raykd.models.proxies.base import ProxyContext, RankingProxy, Scorer
from raykd.registry import option


@option
class Params(RankingProxy):
    """Number of parameters (more is better).

    The baseline: on DisWOT's table of 64 students it ranks the accuracy after distillation with
    Kendall's tau 0.87 (`benchmarks/proxies.py`).  Not informative if `params` is an objective.
    """

    name: Literal["params"] = "params"

    def scorer(self, context: ProxyContext) -> Scorer:
        return lambda model: float(profile_model(model, context.signature).params)


@option
class Macs(RankingProxy):
    """Number of multiply-accumulate operations (more is better).

    Not informative if `macs` is an objective.
    """

    name: Literal["macs"] = "macs"

    def scorer(self, context: ProxyContext) -> Scorer:
        return lambda model: float(profile_model(model, context.signature).macs)
