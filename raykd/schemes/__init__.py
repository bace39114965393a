"""Who teaches whom, and when."""

from raykd.option import Family
from raykd.schemes.alone import Alone
from raykd.schemes.byot import Byot
from raykd.schemes.cs_kd import CsKd
from raykd.schemes.dml import Dml
from raykd.schemes.kdcl import Kdcl
from raykd.schemes.offline import Offline
from raykd.schemes.one import One
from raykd.schemes.ps_kd import PsKd
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput, TeacherSource
from raykd.schemes.teacher import LiveTeacher
from raykd.schemes.tf_kd import TfKd

SCHEMES = Family(
    "scheme",
    [
        Offline,
        Dml,
        One,
        Kdcl,
        Byot,
        CsKd,
        PsKd,
        TfKd,
        Alone,
    ],
    group="raykd.schemes",
)

__all__ = [
    "SCHEMES",
    "Alone",
    "Byot",
    "CsKd",
    "Distiller",
    "Dml",
    "Kdcl",
    "LiveTeacher",
    "Offline",
    "One",
    "Parts",
    "PsKd",
    "Scheme",
    "StepOutput",
    "TeacherSource",
    "TfKd",
]
