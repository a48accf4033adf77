"""What the tests are made with: real flows, real hosts, real faults, and proof that nothing is left behind."""
