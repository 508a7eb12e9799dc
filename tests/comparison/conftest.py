"""Runs with a planted truth, those of the tests of the report."""

from report.conftest import full_manifest, full_rows, manifest, rows

__all__ = ["full_manifest", "full_rows", "manifest", "rows"]
