"""Looks for leaks: private bytes in the clear where a sealed job has none.

`tree` lists what lies in a directory.  `places` says what may be in the clear there, and why.  `signs` tells from a
file's bytes what it is, and `needles` finds given words in them.  `sealed` asks whether a sealed file authenticates.
`look` puts them together and reports findings, without a private byte in them.
"""
