"""The file formats of records: each module reads one as a stream of raw records, `readers` lists them by suffix."""
