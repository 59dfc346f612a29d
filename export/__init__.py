"""From a checkpoint to what Triton serves.

    checkpoint -> torch module -> fp32 ONNX -----------------------> model_repository/<model>/1/
         networks/                to_onnx.py -> int8 ONNX (CPU) ---> repository.py
                               -> fp16 ONNX  -> int8 ONNX (signed)
                                  to_onnx.py    to_int8.py --------> plans, on a GPU: to_plan.py

Each arrow is one function and is checked against the one before it (parity.py, tests/).
`videofer export` walks all but the plans; INT8 needs ranges, which `calibrate.py` measures once.
"""

import os

# ONNX Runtime would keep a device id and usage events under the user's home, to be sent away. It
# reads this when it is imported, so it is set before any of our modules can.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
