"""Your own sockets between the nodes, with no fixed port and no sleep.

    python examples/gang/sockets.py run

Node 0 listens on a port that the gang holds for it, and tells the others the port once it listens: there is nothing to
wait for and to hope. Prints the two greetings that node 0 received.
"""

import socket

from metaflow import FlowSpec, current, gang, step


class Sockets(FlowSpec):
    @step
    def start(self):
        self.next(self.talk, num_parallel=3)

    @gang
    @step
    def talk(self):
        me = current.gang
        if me.is_control:
            with socket.create_server((me.main_address, me.free_port())) as server:
                me.broadcast(server.getsockname()[1])
                self.messages = sorted(self.receive(server) for _ in range(me.num_nodes - 1))
            print(f"received: {self.messages}")
        else:
            port = me.broadcast(None)
            with socket.create_connection((me.main_address, port)) as connection:
                connection.sendall(f"hello from node {me.node_index}".encode())
        self.next(self.join)

    @staticmethod
    def receive(server):
        """One message: a stream gives it in pieces, so it is read until the other side closes."""
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            return stream.read().decode()

    @step
    def join(self, inputs):
        self.messages = next(node.messages for node in inputs if hasattr(node, "messages"))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Sockets()
