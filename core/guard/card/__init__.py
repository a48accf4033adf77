"""What the card shows: snapshots of the gang, which node 0's guard hands to a program that stores them."""
