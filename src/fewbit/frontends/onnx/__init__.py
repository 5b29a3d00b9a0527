"""The ONNX front end: `onnx-ir` graphs, NumPy arrays, and onnxruntime to run them."""
