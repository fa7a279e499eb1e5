"""The way out: ONNX, with int8 where it is asked for, and StableHLO. What is written is run and compared at once."""
