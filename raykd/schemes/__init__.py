"""Who teaches whom, and when."""

from raykd.option import Family
from raykd.schemes.alone import Alone
from raykd.schemes.assistant import Assistant
from raykd.schemes.byot import Byot
from raykd.schemes.cs_kd import CsKd
from raykd.schemes.dml import Dml
from raykd.schemes.kdcl import Kdcl
from raykd.schemes.multi_teacher import MultiTeacher
from raykd.schemes.offline import Offline
from raykd.schemes.one import One
from raykd.schemes.ps_kd import PsKd
from raykd.schemes.scheme import Distiller, Guide, Parts, Scheme, StepOutput, TeacherSource
from raykd.schemes.self_taught import BornAgain, TfKdSelf
from raykd.schemes.teacher import LiveTeacher
from raykd.schemes.teachers import Circumstances, Preparation, Teacher
from raykd.schemes.tf_kd import TfKd

SCHEMES = Family(
    "scheme",
    [
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
    ],
    group="raykd.schemes",
    base=Scheme,
)

__all__ = [
    "SCHEMES",
    "Alone",
    "Assistant",
    "BornAgain",
    "Byot",
    "Circumstances",
    "CsKd",
    "Distiller",
    "Dml",
    "Guide",
    "Kdcl",
    "LiveTeacher",
    "MultiTeacher",
    "Offline",
    "One",
    "Parts",
    "Preparation",
    "PsKd",
    "Scheme",
    "StepOutput",
    "Teacher",
    "TeacherSource",
    "TfKd",
    "TfKdSelf",
]
