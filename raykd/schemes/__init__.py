"""Who teaches whom, and when."""

from raykd.option import Family
from raykd.schemes.alone import Alone
from raykd.schemes.offline import Offline
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput, TeacherSource
from raykd.schemes.teacher import LiveTeacher

SCHEMES = Family("scheme", [Offline, Alone], group="raykd.schemes")

__all__ = [
    "SCHEMES",
    "Alone",
    "Distiller",
    "LiveTeacher",
    "Offline",
    "Parts",
    "Scheme",
    "StepOutput",
    "TeacherSource",
]
