"""What FAN's serving is measured against: the same embedder, run and served the usual ways.

fastapi_app, litserve_app    HTTP servers of .venv-peers: a clip's bytes -> its features' bytes
openvino_worker              OpenVINO in a process of .venv-peers, which times nothing but itself
naive                        a Triton repository as one is first written
processes                    starting them, pausing them while others are measured, ending them
clients                      asking them
"""
