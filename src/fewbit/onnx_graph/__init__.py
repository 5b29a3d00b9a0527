"""ONNX graphs as the front end and the writer both see them: files, constants, and which nodes are layers."""
