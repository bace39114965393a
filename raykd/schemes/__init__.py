"""Schemes: who teaches whom, and when."""

from raykd.schemes.alone import Alone
from raykd.schemes.assistant import Assistant
from raykd.schemes.base import SCHEMES, AnyScheme, Scheme, Teacher, TeacherContext, TeacherSpec
from raykd.schemes.born_again import BornAgain, TfKdSelf
from raykd.schemes.byot import Byot
from raykd.schemes.cs_kd import CsKd
from raykd.schemes.distiller import (
    Distiller,
    HookedModel,
    LiveTeacher,
    SchemeInputs,
    StepOutput,
    TeacherInputs,
    TeacherSource,
)
from raykd.schemes.dml import Dml
from raykd.schemes.kdcl import Kdcl
from raykd.schemes.multi_teacher import MultiTeacher
from raykd.schemes.offline import Offline
from raykd.schemes.one import One
from raykd.schemes.ps_kd import PsKd
from raykd.schemes.tf_kd import TfKd

SCHEMES.add(
    Offline,
    Assistant,
    MultiTeacher,
    Dml,
    One,
    Kdcl,
    Byot,
    CsKd,
    PsKd,
    TfKd,
    TfKdSelf,
    BornAgain,
    Alone,
)

__all__ = [
    "SCHEMES",
    "Alone",
    "AnyScheme",
    "Assistant",
    "BornAgain",
    "Byot",
    "CsKd",
    "Distiller",
    "Dml",
    "HookedModel",
    "Kdcl",
    "LiveTeacher",
    "MultiTeacher",
    "Offline",
    "One",
    "PsKd",
    "Scheme",
    "SchemeInputs",
    "StepOutput",
    "Teacher",
    "TeacherContext",
    "TeacherInputs",
    "TeacherSource",
    "TeacherSpec",
    "TfKd",
    "TfKdSelf",
]
