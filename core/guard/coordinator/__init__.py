"""The gang as a whole, on node 0's guard: its nodes, their collectives, their failures, and the root cause."""
