"""One piece of work for a slot: which concrete study to train, under which seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["teacher", "trial", "replicate", "alone", "probe", "outputs", "wait"]


@dataclass(frozen=True)
class Assignment:
    """One training, in plain data, so that it can travel without torch.

    Attributes:
        id: "teacher-0", "trial-0007", "trial-0007/seed-1", "trial-0007/alone-1"; "wait-3" keeps
            a slot warm while there is nothing to do, "outputs-1f3a-0" keeps a teacher's.
        role: what the training is for.
        study: the concrete study, as plain data.
        seed: of the training.
        epochs: how many there will be; 0: nothing is trained, `measures` is evaluated.
        folder: the study's folder below the storage.
        params: the drawn values by their study path; empty for what is not drawn.
        parent: the id of the trial this belongs to, or None.
        teachers: the files of the networks that teach, below the storage, in the scheme's order.
        outputs: the addresses of those teachers' kept outputs, in the same order; empty texts for
            teachers that are run live, no texts where all are.
        build: what to compute and keep of the first of the teachers (`role` is "outputs"): its
            `description`, `about`, and which `share` of how many `shares`; or None.
        probe: what to find out of a teacher and a student that has only begun to learn (`role` is
            "probe"), as `raykd.training.layer_probes.question_of` reads it, with the concrete study
            `without` hint, `without_teachers` (as `teachers`), and the file of the student
            `trained` without hint; or None.
        measures: the file of a network, below the storage, that is only evaluated, or None.
        sole: whether nothing else can be trained before it ends, so that it may use the processors
            of the slots that wait for it.
        test: whether the test split is evaluated at the end.
        keep: the file, below the storage, for the trained network, or None.
        tags, metrics: what is known before it starts (losses, params, MACs).
        names: how tables show it (`raykd.study.short_names.names_of`); empty before it begins.
    """

    id: str
    role: Role
    study: Mapping[str, Any]
    seed: int
    epochs: int
    folder: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    teachers: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    build: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    measures: str | None = None
    sole: bool = False
    test: bool = False
    keep: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def state_file(self) -> str:
        """Where its state is kept between epochs, below the storage."""
        return f"{self.folder}/states/{self.id.replace('/', '.')}.pt"

    @property
    def failure_file(self) -> str:
        """The reason of a failure that took a whole group of ranks down, and in a second line
        where the user's own code raised it."""
        return f"{self.folder}/states/{self.id.replace('/', '.')}.failed"

    def log_file(self, rank: int = 0) -> str:
        """The log of one of its processes, below the storage (`raykd.training.log_file`)."""
        return f"{self.folder}/logs/{self.log_name(rank)}"

    def log_name(self, rank: int = 0) -> str:
        return self.id.replace("/", ".") + (f".rank-{rank}.log" if rank else ".log")

    @property
    def makes(self) -> str | None:
        """The file, below the storage, where its network is at its end, or None."""
        return self.keep or self.measures

    def plain(self) -> dict[str, Any]:
        # Its values are plain already: `asdict` would copy a whole study, at a millisecond each.
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Assignment:
        lists = {name: tuple(data.get(name, ())) for name in ("teachers", "outputs")}
        return cls(**{**data, **lists})
