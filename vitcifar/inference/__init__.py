"""An ONNX session: pictures in, calibrated probabilities and a timing breakdown out."""
