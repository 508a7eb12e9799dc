"""Rows with a planted truth and their summary, those of the tests of the report."""

from report.conftest import rows, summary

__all__ = ["rows", "summary"]
