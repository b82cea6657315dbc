"""A part of data that is too much to read whole, taken evenly from all of it and not from its beginning."""

from __future__ import annotations

from mmcli.data.sources.sources import Sources


class Pace:
    """Says which texts of some data to take, so that they are about `most` bytes in all.

    A text is taken while the share of `most` that was taken is not ahead of the share of the data that was read. So
    all texts are taken where they are fewer; else some at every place, the same in every run. Where the size of the
    data is not known before (a data set of the hub), the first `most` bytes are taken.
    """

    def __init__(self, sources: Sources, most: float) -> None:
        """
        Args:
            most: bytes of UTF-8 text.
        """
        self._total, self._most = sources.total, most
        self._read = 0
        self.taken = 0  # bytes
        self.skipped = 0  # texts

    def on_bytes(self, count: int) -> None:
        """To be told of the bytes read of the files (see `Sources.records`)."""
        self._read += count

    def takes(self, text: str) -> bool:
        """True if this text, the next of the data, is taken."""
        share = 1.0 if not self._total else self._read / self._total
        if self.taken >= self._most * share:
            self.skipped += 1
            return False
        self.taken += len(text.encode("utf-8", "surrogatepass"))
        return True
