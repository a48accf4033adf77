"""What the nodes compare and check before the step's body begins: software, machines, and the network between them."""
