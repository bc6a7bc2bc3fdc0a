"""One ONNX model on the CPU: images in; calibrated predictions and their timing out."""
