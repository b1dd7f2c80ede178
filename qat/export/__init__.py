"""Export: a trained network as codes and scales, a packed file, integer arithmetic, and ONNX."""
