"""The floor of every unary call: a bare threaded grpcio server that answers each request with the same bytes.

    python -m benchmarks.echo THREADS REPLY_BYTES

Prints its port, and serves until standard input closes.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def main() -> None:
    """Serve."""
    threads, size = int(sys.argv[1]), int(sys.argv[2])
    reply = b"x" * size
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: reply)
    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_registered_method_handlers("bench.Echo", {"Echo": handler})
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
