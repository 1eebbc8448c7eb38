"""What a stream holds from its admission to its end, counted at its peak."""

import msgspec


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Counted resources: of one stream at its peak, of all streams together, or of the engine.

    `pages` are pages of the KV-cache (a page shared by branches of one stream counts once),
    `decoder_slots` places for a VAE decoder's state, `text_rows` rows of text K/V.
    """

    pages: int = 0
    decoder_slots: int = 0
    text_rows: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            assert getattr(self, name) >= 0, f"{name} must be >= 0: {getattr(self, name)}"

    def __add__(self, other: "Needs") -> "Needs":
        return Needs(
            pages=self.pages + other.pages,
            decoder_slots=self.decoder_slots + other.decoder_slots,
            text_rows=self.text_rows + other.text_rows,
        )

    def __sub__(self, other: "Needs") -> "Needs":
        """What is left; `other` must fit in this."""
        return Needs(
            pages=self.pages - other.pages,
            decoder_slots=self.decoder_slots - other.decoder_slots,
            text_rows=self.text_rows - other.text_rows,
        )

    def __str__(self) -> str:
        counts = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return ", ".join(f"{count:,} {_label(name, count)}" for name, count in counts)

    def fits(self, capacity: "Needs") -> bool:
        """Whether `capacity` has at least this much of everything."""
        return (
            self.pages <= capacity.pages
            and self.decoder_slots <= capacity.decoder_slots
            and self.text_rows <= capacity.text_rows
        )

    def shortfall(self, capacity: "Needs") -> str:
        """What `capacity` lacks, for people; the empty text if this fits.

        For example "900 pages of 600, 2 decoder slots of 1".
        """
        lacking = []
        for name in self.__struct_fields__:
            needed, available = getattr(self, name), getattr(capacity, name)
            if needed > available:
                lacking.append(f"{needed:,} {_label(name, needed)} of {available:,}")
        return ", ".join(lacking)


def _label(name: str, count: int) -> str:
    words = name.replace("_", " ")
    return words.removesuffix("s") if count == 1 else words
