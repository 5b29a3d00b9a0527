"""Calibration data without data."""
