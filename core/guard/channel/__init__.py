"""Authenticated connections between the guards of one gang, and the accept loop of all servers.

The handshake (each line one frame of :mod:`~.loop.framing`):

    connecting -> accepting   hello: version, identity, role, node, nonce, info
    connecting <- accepting   nonce, the accepting node's index, proof of the secret
    connecting -> accepting   own clock, proof of the secret
    connecting <- accepting   welcome, with the clocks' offset (the first frame with a MAC); or "busy": come again

Both proofs are HMACs, under the gang's secret, over everything sent so far, and a label for the
direction; so neither can be made without the secret, sent back to where it came from, or used a second time. From the
secret and the same transcript each direction gets a key of its own. Every later frame is followed by an HMAC-SHA256
over the number of the frame and its bytes: one that is changed, left out, repeated or moved ends the connection.

Contents are authenticated, not encrypted: what needs secrecy goes by TLS (:mod:`~.tls`).
"""
