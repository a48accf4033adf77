"""Coordination through Redis, which lives as long as the gang: node 0 starts it, all use it, it goes with the step.

    python examples/gang/redis_coordination.py run

Needs the program redis-server (Debian: redis-server) and the Python package redis. Three nodes take jobs from one
queue until it is empty; prints which node did how many, and the sum of the results.
"""

import contextlib
import secrets
import shutil
import subprocess

from metaflow import FlowSpec, current, gang, step

JOBS = 30


@contextlib.contextmanager
def redis_server(address, port, password, folder):
    """A server for this gang alone, ready when the block begins and gone when it ends."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed on node 0: add the package redis-server to its image")
    # From stdin, so that the password is on no command line and in no file.
    settings = [f"bind {address}", f"port {port}", f"requirepass {password}", f"dir {folder}", 'save ""']
    with subprocess.Popen([program, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdin.write("\n".join(settings) + "\n")
            server.stdin.close()
            log = []
            for line in server.stdout:
                log.append(line)
                if "Ready to accept connections" in line:
                    break
            else:
                raise RuntimeError("redis-server did not start:\n" + "".join(log[-5:]))
            yield
        finally:
            server.terminate()


class RedisCoordination(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang
    @step
    def work(self):
        me = current.gang
        with contextlib.ExitStack() as stack:
            where = None
            if me.is_control:
                where = {"port": me.free_port(), "password": secrets.token_hex(16)}
                stack.enter_context(redis_server(me.main_address, folder=me.folder, **where))
            where = me.broadcast(where)  # arrives when the server is ready: nobody has to try and wait
            self.done = self.take_jobs(where)
            if me.is_control:
                self.total = self.collect(where)
            me.barrier()  # the server stays until all are done with it
        self.next(self.join)

    def take_jobs(self, where):
        """Take jobs while there are any; return how many this node did."""
        import redis

        with redis.Redis(current.gang.main_address, where["port"], password=where["password"]) as client:
            if current.gang.is_control:
                client.rpush("jobs", *range(JOBS))
                client.rpush("start", *range(current.gang.num_nodes))
            client.blpop("start", timeout=60)  # one token for each node: the queue is full
            done = 0
            while (job := client.lpop("jobs")) is not None:
                client.rpush("results", int(job) ** 2)
                done += 1
            return done

    def collect(self, where):
        """Node 0 takes each result as it comes: BLPOP waits for it on the server."""
        import redis

        with redis.Redis(current.gang.main_address, where["port"], password=where["password"]) as client:
            return sum(int(client.blpop("results", timeout=60)[1]) for _ in range(JOBS))

    @step
    def join(self, inputs):
        self.done = [node.done for node in inputs]
        self.total = next(node.total for node in inputs if hasattr(node, "total"))
        print(f"jobs per node: {self.done}, sum of the results: {self.total}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RedisCoordination()
