"""Private parts of other packages that raykd uses, each with its version, its reason and a test.

Nothing else in raykd touches a private name of Ray, Optuna or the standard library.  Each function
says which version it was written for and why no public name serves; the tests in `tests/compat`
fail when a part is gone.  Imports nothing of raykd.
"""
