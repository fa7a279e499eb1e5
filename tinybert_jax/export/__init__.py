"""Export to ONNX and StableHLO, in float32 or int8. The written files are run and compared with the model."""
