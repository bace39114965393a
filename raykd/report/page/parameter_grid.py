"""Grid of small figures, one for each parameter of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from raykd.report.format import short_parameter
from raykd.report.page.search_figures import log_axis

COLUMNS = 3
PLOT_WIDTH = 215
MAX_TICKS = 6
"""Maximum number of integers that are all written along an axis."""

TRIAL_ID = "raykd.id"
"""User attribute of Optuna's trials: ID of the trial in the journal."""


class ParameterGrid:
    """Empty figure with one plot for each parameter, whose axis shows all its values.

    Args:
        trials: trials that have the parameters.
        names: parameters, from the top left.

    Attributes:
        figure: the figure.
        height: its height in pixels.
        min_width: its smallest width in pixels, at which titles do not overlap.
    """

    def __init__(self, trials: Sequence[FrozenTrial], names: Sequence[str]) -> None:
        self._names = list(names)
        self._distributions: dict[str, BaseDistribution] = {}
        for trial in trials:
            self._distributions |= trial.distributions
        rows = -(-len(names) // COLUMNS)
        self.height = 90 + 210 * rows
        self.min_width = 60 + PLOT_WIDTH * min(COLUMNS, len(names))
        self.figure = make_subplots(
            rows,
            COLUMNS,
            shared_yaxes=True,
            horizontal_spacing=0.04,
            vertical_spacing=0.3 / rows,
            subplot_titles=[short_parameter(name) for name in names],
        )
        self.figure.update_annotations(font={"size": 13})
        self.figure.update_layout(margin={"t": 40})
        for name in names:
            row, column = self.place(name)
            values = [trial.params[name] for trial in trials if name in trial.params]
            self.figure.update_xaxes(**self._axis(name, values), row=row, col=column)

    def place(self, name: str) -> tuple[int, int]:
        """Return the row and the column of a parameter's plot, from 1."""
        position = self._names.index(name)
        return position // COLUMNS + 1, position % COLUMNS + 1

    def coordinates(self, name: str, trials: Sequence[FrozenTrial]) -> list[Any]:
        """Return the places of trials on the axis of a parameter."""
        values = [trial.params[name] for trial in trials]
        return [str(value) for value in values] if self._is_categorical(name) else values

    def _is_categorical(self, name: str) -> bool:
        return isinstance(self._distributions[name], CategoricalDistribution)

    def _axis(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
        distribution = self._distributions[name]
        if isinstance(distribution, CategoricalDistribution):
            order = [str(choice) for choice in distribution.choices]
            return {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": order,
                "range": [-0.5, len(order) - 0.5],
            }
        if isinstance(distribution, IntDistribution) and not distribution.log:
            numbers = range(distribution.low, distribution.high + 1, distribution.step)
            return {"tickvals": list(numbers)} if len(numbers) <= MAX_TICKS else {}
        return log_axis(values) if getattr(distribution, "log", False) else {}
