"""What the gangs of one machine share: ports, and the user's private folder."""
