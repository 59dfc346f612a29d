"""How fast it is: ratios within one run, with commit, hardware and versions beside them."""

import os

# ONNX Runtime would keep a device id and usage events under the user's home, to be sent away. It
# reads this when it is imported, so it is set before any of our modules can.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
