"""The parts of Metaflow that only backends use and that are no public interface of it."""
