"""The gang as a whole, on node 0, and the other nodes' connection to it: who is there, and what failed first."""
