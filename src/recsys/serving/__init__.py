"""What a server runs: numpy, ONNX and the index. Imports no torch."""
