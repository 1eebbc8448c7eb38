"""What a stream holds from its admission to its end, counted at its peak."""

import msgspec


class Needs(msgspec.Struct, frozen=True):
    """Counted resources: of one stream at its peak, of all streams together, or of the engine.

    `pages` are pages of the KV-cache (a page shared by branches of one stream counts once),
    `decoder_slots` places for a VAE decoder's state, `text_rows` rows of text K/V,
    `codebook_slots` codebooks that may live at a time, `codebook_rows` the rows of all of them,
    `refinement_pages` second pages of the newest ones.
    """

    pages: int = 0
    decoder_slots: int = 0
    text_rows: int = 0
    codebook_slots: int = 0
    codebook_rows: int = 0
    refinement_pages: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            assert getattr(self, name) >= 0, f"{name} must be >= 0: {getattr(self, name)}"

    def __add__(self, other: "Needs") -> "Needs":
        return Needs(*(mine + its for mine, its in zip(self._counts, other._counts, strict=True)))

    def __sub__(self, other: "Needs") -> "Needs":
        """What is left; `other` must fit in this."""
        return Needs(*(mine - its for mine, its in zip(self._counts, other._counts, strict=True)))

    def __str__(self) -> str:
        counts = zip(self.__struct_fields__, self._counts, strict=True)
        named = [f"{count:,} {_label(name, count)}" for name, count in counts if count]
        return ", ".join(named) or "nothing"

    def fits(self, capacity: "Needs") -> bool:
        """Whether `capacity` has at least this much of everything."""
        return all(mine <= its for mine, its in zip(self._counts, capacity._counts, strict=True))

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

    @property
    def _counts(self) -> tuple[int, ...]:
        return msgspec.structs.astuple(self)


def _label(name: str, count: int) -> str:
    words = name.replace("_", " ")
    return words.removesuffix("s") if count == 1 else words
