"""Quantized ONNX files: the writer, what runtimes make of what it writes, and the rules that it has to keep."""
