"""A server of Milvus in a process of its own: ``milvus_server.py FOLDER PORT [TOKEN]`` prints its port.

It is Milvus Lite's server with one thread, since it does not write for two clients at a time. With TOKEN it
refuses who does not bring that, in the words and by the code of a server that has users.
"""

import base64
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def milvus_server(folder: Path, port: int = 0, token: str = "") -> Iterator[tuple[str, subprocess.Popen]]:
    """Start a server that keeps its data in ``folder``; yields its address and process."""
    command = [sys.executable, __file__, folder, str(port or free_port()), token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"milvus://127.0.0.1:{int(server.stdout.readline())}", server
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def serve(folder: str, port: str, token: str) -> None:
    import grpc
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    class Guard(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            brought = dict(details.invocation_metadata).get("authorization", "")
            if base64.b64decode(brought).decode() == token:
                return continuation(details)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check api key is correct"
                )
            )

    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Guard()] if token else [])
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(MilvusLite(folder)), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(port, flush=True)
    signal.pause()


if __name__ == "__main__":
    serve(*sys.argv[1:])
