"""How one tensor is quantized: number format x granularity x symmetry x range method x type of the scale."""
