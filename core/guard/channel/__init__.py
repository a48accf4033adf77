"""Authenticated connections between the guards of one gang, and the accept loop of all servers."""
