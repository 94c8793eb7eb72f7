"""Files on a job's volume: sealed or in the clear, on the disk once they are written, whole or absent.

Callers read and write through a `Vault` and name files without regard to sealing.  Plaintext goes in as buffers, is
cut into segments, encrypted on threads and synced.  It comes back segment by segment, and no byte that does not
authenticate is ever returned.  A key-encryption key from a mounted file opens the keyring, and that holds the data keys
that open the files.  docs/checkpoint-format.md describes the formats.
"""
