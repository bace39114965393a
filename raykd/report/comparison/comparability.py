"""Checks of members: data, splits, objectives and budget on which a comparison depends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raykd.report.comparison.members import Member

MAX_LISTED = 4
"""Maximum number of differing values in one remark."""


@dataclass(frozen=True)
class Remark:
    """Reason that members are not fully comparable.

    Attributes:
        subject: "data", "splits", "objectives" or "epochs".
        difference: the difference, one sentence.
        left: comparisons that remain possible, one sentence.
    """

    subject: str
    difference: str
    left: str

    def __str__(self) -> str:
        return f"{self.difference} {self.left}"


@dataclass(frozen=True)
class Comparability:
    """Members grouped by data.

    Attributes:
        groups: members on the same source of data, in the order of the members.
        remarks: differences, with the comparisons that remain possible.
    """

    groups: tuple[tuple[Member, ...], ...]
    remarks: tuple[Remark, ...]

    def can_pair(self, first: Member, second: Member) -> bool:
        """Return True if the same seed means the same data and splits in both members."""
        if first is second:
            return True
        prints = first.data.fingerprint, second.data.fingerprint
        return all(prints) and prints[0] == prints[1]


def check_members(members: Sequence[Member]) -> Comparability:
    """Compare the data, splits, objectives and epochs of members."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.data.name or "unknown", []).append(member)
    remarks = [
        *_data_remarks(groups),
        *(remark for group in groups.values() for remark in _split_remarks(group)),
        *_objective_remarks(members),
        *_epoch_remarks(members),
    ]
    return Comparability(tuple(map(tuple, groups.values())), tuple(remarks))


def _data_remarks(groups: Mapping[str, Sequence[Member]]) -> list[Remark]:
    if len(groups) < 2:
        return []
    listed = "; ".join(f"{name}: {_names(group)}" for name, group in groups.items())
    return [
        Remark(
            "data",
            f"The data differ ({listed}).",
            "Metrics and fronts are compared only within the same data; gains over training "
            "without a teacher, costs and settings can be read side by side.",
        )
    ]


def _split_remarks(group: Sequence[Member]) -> list[Remark]:
    prints = {member.data.fingerprint for member in group}
    if len(group) < 2 or (len(prints) == 1 and "" not in prints):
        return []
    if "" in prints:
        unknown = [member for member in group if not member.data.fingerprint]
        return [
            Remark(
                "splits",
                f"The splits of {_names(unknown)} are not recorded.",
                "Its seeds are not paired with those of the others: tests between them are "
                "unpaired, and valid only if the test data are the same.",
            )
        ]
    by_print = [
        _names([member for member in group if member.data.fingerprint == fingerprint])
        for fingerprint in dict.fromkeys(member.data.fingerprint for member in group)
    ]
    options = {key for member in group for key in member.data.options}
    changed = [
        f"{key} {_values(group, key)}"
        for key in sorted(options)
        if len({member.data.options.get(key) for member in group}) > 1
    ]
    reason = f" ({'; '.join(changed[:MAX_LISTED])})" if changed else ""
    return [
        Remark(
            "splits",
            f"The splits differ: {' / '.join(by_print)}{reason}.",
            "Seeds are not paired across them: tests between studies with different splits are "
            "unpaired and include the difference of the splits.",
        )
    ]


def _objective_remarks(members: Sequence[Member]) -> list[Remark]:
    studies = [member for member in members if member.objectives]
    sets = {frozenset(member.objectives.items()) for member in studies}
    if len(sets) < 2:
        return []
    listed = "; ".join(
        f"{member.name}: {', '.join(f'{way} {name}' for name, way in member.objectives.items())}"
        for member in studies[:MAX_LISTED]
    )
    common = sorted(name for name, _ in frozenset.intersection(*sets))
    left = (
        f"Fronts are compared in the common objectives: {', '.join(common)}."
        if common
        else "They have no objective in common, so fronts are not compared."
    )
    return [Remark("objectives", f"The objectives differ ({listed}).", left)]


def _epoch_remarks(members: Sequence[Member]) -> list[Remark]:
    epochs = {member.name: member.settings_of_runs("train.epochs") for member in members}
    epochs = {name: values for name, values in epochs.items() if values}
    if len(set(epochs.values())) < 2:
        return []
    listed = "; ".join(f"{name}: {' or '.join(values)}" for name, values in epochs.items())
    return [
        Remark(
            "epochs",
            f"The epochs of the trainings differ ({listed}).",
            "A difference between the studies includes the longer training.",
        )
    ]


def _names(members: Sequence[Member]) -> str:
    names = [member.name for member in members]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _values(group: Sequence[Member], key: str) -> str:
    values = dict.fromkeys(member.data.options.get(key, "none") for member in group)
    return " / ".join(list(values)[:MAX_LISTED])
