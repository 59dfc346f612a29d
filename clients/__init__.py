"""From a video to who is in it, when, and with which emotion, by way of a Triton server.

    source -> frames -> faces -> tracks -> crops -> Triton -> Analysis -> reports/
            video.py  faces.py  tracker.py         stream.py analysis.py

analyse.py walks it, live.py as it happens, folder.py for many sources. verbs/ are the commands.
occlusion.py asks where in a face the answer comes from. Nothing here needs torch or tensorrt.
"""

import os

# FFmpeg and OpenCV print their own account of a bad file; ours is one line. OpenCV reads these
# when it is imported, so they are set before any of our modules can.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# Else ONNX Runtime, which finds the faces, keeps events under the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# gRPC writes lines of its own about a refused handshake; ours says it once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
