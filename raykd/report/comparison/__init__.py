"""Comparison of studies and of other runs: arms over seeds, tests, differences, fronts, costs."""
