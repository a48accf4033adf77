"""The guard's event loop, and messages as frames on a stream."""
