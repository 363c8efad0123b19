"""Homomorphic encryption of weights: sites hold one key, the server adds up what it cannot read.

Works on FLARE's kits (``HEBuilder``) and with FLARE's own encryptor and decryptor. The package ``tenseal`` is imported
where it is used, so that a site without it can say so.
"""
