"""From a checkpoint to what Triton serves.

    checkpoint -> torch module -> fp32 ONNX -> model_repository/<model>/1/
    checkpoint.py  fan.py         to_onnx.py   repository.py

Each arrow is one function and is checked against the one before it (tests/test_parity.py).
`python -m export` walks all of them.
"""
