"""Export of a trained student to formats that load without raykd, with a model card.

Each exported file is opened again and compared with the original on real samples.
"""

from raykd.export.export import export_student
from raykd.export.report import ExportedFile, ExportResult
from raykd.export.student import SavedStudent, find_student

__all__ = ["ExportResult", "ExportedFile", "SavedStudent", "export_student", "find_student"]
