"""Online serving with numpy, ONNX and the index. Imports no torch."""
