"""What this machine offers a node: addresses, network adapters, accelerators and processors."""
