"""Data to calibrate and measure with: samples in files, readers and iterables, as batches read when asked for."""
