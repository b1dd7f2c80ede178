"""ONNX files: faithful, fast and QONNX, their checks and their run."""
