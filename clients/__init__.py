"""From a video of a face to its emotion, by way of a Triton server.

    video.mp4 -> frames  -> faces     -> aligned crops -> Triton    -> result
                video.py   faces.py     faces.py         stream.py    result.py, pictures.py

`videofer predict video.mp4` walks it (verbs/); `videofer saliency video.mp4` asks where in the face
the answer comes from (occlusion.py). Nothing here needs torch or tensorrt.
"""

import os

# FFmpeg and OpenCV print their own account of a bad file; ours is one line. OpenCV reads these
# when it is imported, so they are set before any of our modules can.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# Else ONNX Runtime, which finds the faces, keeps events under the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
