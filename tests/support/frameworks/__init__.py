"""What tests of one framework share: its ranks, its own variables, its stand-ins."""
