"""The parts of Metaflow that are not its public interface: all that this package uses of them is named in here."""
