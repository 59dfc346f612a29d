"""FAN's embedder behind FastAPI and uvicorn: one worker, the model run in the thread pool.

python -m benchmarks.peer_servers.fastapi_app model.onnx 8000
"""

import sys
from pathlib import Path

import uvicorn  # type: ignore[import-not-found]
from fastapi import FastAPI, HTTPException, Request, Response  # type: ignore[import-not-found]
from fastapi.concurrency import run_in_threadpool  # type: ignore[import-not-found]

from benchmarks.peer_servers.embedder import Embedder

# A paused server would find its clients' connections too old when it goes on.
KEEP_ALIVE_S = 3600


def make_app(embedder: Embedder) -> FastAPI:
    """Serve POST /embed, a clip's bytes in the body, and GET /health."""
    app = FastAPI(telemetry={"auto_configure": False})

    @app.get("/health")  # type: ignore[untyped-decorator]
    async def health() -> str:
        return "ready"

    @app.post("/embed")  # type: ignore[untyped-decorator]
    async def embed(request: Request) -> Response:
        body = await request.body()
        try:
            features = await run_in_threadpool(embedder.answer, body)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return Response(features, media_type="application/octet-stream")

    return app


def main() -> None:
    app = make_app(Embedder(Path(sys.argv[1])))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )


if __name__ == "__main__":
    main()
