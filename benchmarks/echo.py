"""The floor of every unary call: a bare threaded grpcio server that answers each request with the same bytes.

    python -m benchmarks.echo ADDRESS THREADS REPLY_BYTES

Several of them may share an address, as serving processes do. Says when it serves, and does until standard input
closes.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def main() -> None:
    """Serve."""
    address, threads, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    reply = b"x" * size

    def answer(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return reply

    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 1)])
    server.add_registered_method_handlers("bench.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(answer)})
    server.add_insecure_port(address)
    server.start()
    print("serving", flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
