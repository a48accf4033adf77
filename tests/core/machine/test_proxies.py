"""A proxy in the environment does not come between the nodes of a gang: neither in gRPC nor in Python's own HTTP."""

from __future__ import annotations

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.flows import FlowRunner
from support.frameworks.tensorflow import QUIET
from support.requirements import require_packages

from metaflow_extensions.gang.core.machine.proxies import LONGEST, without_proxy

NOBODY = "http://127.0.0.1:9"
"""A proxy that refuses every connection."""

NODES = ["10.0.0.1", "fe80::1%eth0", "main.svc"]
ADDED = "localhost,127.0.0.1,10.0.0.1,fe80::1,[fe80::1],main.svc"


@pytest.mark.parametrize(
    ("environ", "changed"),
    [
        ({}, {}),
        ({"no_proxy": "internal"}, {}),
        ({"http_proxy": ""}, {}),
        ({"HTTPS_PROXY": NOBODY}, dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy"), ADDED)),
        (
            {"grpc_proxy": NOBODY, "NO_PROXY": "internal, .local", "no_grpc_proxy": "10.0.0.1"},
            {
                "no_proxy": f"internal,.local,{ADDED}",
                "NO_PROXY": f"internal,.local,{ADDED}",
                "no_grpc_proxy": "10.0.0.1,localhost,127.0.0.1,fe80::1,[fe80::1],main.svc",
            },
        ),
        ({"all_proxy": NOBODY, **dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy"), ADDED)}, {}),
    ],
)
def test_what_is_added(environ: dict[str, str], changed: dict[str, str]) -> None:
    assert without_proxy(NODES, environ) == changed


def test_a_variable_stays_short_enough_for_a_program_to_start() -> None:
    nodes = [f"2001:db8:1234:5678:90ab:cdef:1234:{node:04x}" for node in range(4096)]
    changed = without_proxy(nodes, {"http_proxy": NOBODY})
    assert all(nodes[0] in value and len(value) < LONGEST for value in changed.values())


FLOW = """
import os, subprocess, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
from metaflow import FlowSpec, current, step
import metaflow

LAUNCHER = os.environ["LAUNCHER"]
decorator = getattr(metaflow, LAUNCHER)

CALL = '''
import sys, grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(channel.unary_unary("/s/Double")(b"12", timeout=60))
'''

def gang():
    # gRPC and HTTP from node 1 to node 0, in the body and in a program of its own.
    import grpc
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    gang = current.gang
    ports = gang.all_gather([gang.free_port(), gang.free_port()])[0]
    if gang.is_control:
        double = grpc.unary_unary_rpc_method_handler(lambda request, context: request * 2)
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"Double": double})])
        server.add_insecure_port(f"{gang.main_address}:{ports[0]}")
        server.start()
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(204)
                self.end_headers()
        http = ThreadingHTTPServer((gang.main_address, ports[1]), Answers)
        ThreadPoolExecutor(1).submit(http.serve_forever)
    gang.barrier()
    if not gang.is_control:
        with grpc.insecure_channel(f"{gang.main_address}:{ports[0]}") as channel:
            assert channel.unary_unary("/s/Double")(b"12", timeout=60) == b"1212"
        gang.run([sys.executable, "-c", CALL, f"{gang.main_address}:{ports[0]}"])
        assert urllib.request.urlopen(f"http://{gang.main_address}:{ports[1]}", timeout=60).status == 204
    gang.barrier()
    if gang.is_control:
        http.shutdown()
        server.stop(None)
    return 2

def jax():
    import jax
    jax.distributed.initialize()
    return jax.process_count()

def tensorflow():
    import tensorflow as tf
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    total = tf.function(lambda: strategy.reduce("sum", strategy.run(lambda: tf.constant(1.0)), axis=None))
    return int(total())

def metaflow_ray():
    import ray
    ray.init()
    add = ray.remote(lambda: 1)
    return sum(ray.get([add.options(resources={f"node:{node}": 0.01}).remote() for node in range(2)]))

class Proxied(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @decorator
    @step
    def work(self):
        self.found = globals()[LAUNCHER]()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = inputs[0].found
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Proxied()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", ["gang", *(pytest.param(name, marks=pytest.mark.big) for name in ("tensorflow", "jax", "metaflow_ray"))]
)
def test_nodes_reach_each_other_past_a_proxy(flow_run: FlowRunner, launcher: str) -> None:
    require_packages("grpc" if launcher == "gang" else "ray" if launcher == "metaflow_ray" else launcher)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), NOBODY)
    run = flow_run(FLOW, env={**QUIET, **proxies, "LAUNCHER": launcher}).ok(150)
    assert run.artifact("join", "found") == 2
    said = "A proxy is set; the nodes' addresses were added to no_proxy, NO_PROXY, no_grpc_proxy"
    assert run.output.count(said) == 2, run.dump()
