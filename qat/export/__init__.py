"""From a trained network to codes and scales, a packed file, integer arithmetic, and ONNX."""
