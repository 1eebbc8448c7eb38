"""Who holds pages: owners with a reservation, and their branches."""

from qvg_engine.block_manager.block_table import BlockTable
from qvg_engine.block_manager.codebooks import CodebookSet


class Owner:
    """A stream's account.

    Pages reserved, pages in use (a shared page counts once), branches, and the sets of codebooks
    that it reserved, whether a branch has them or not.
    """

    __slots__ = ("branch_ids", "codebook_sets", "num_used", "owner_id", "reserved_pages")

    def __init__(self, owner_id: str, reserved_pages: int) -> None:
        self.owner_id = owner_id
        self.reserved_pages = reserved_pages
        self.num_used = 0
        self.branch_ids: set[int] = set()
        self.codebook_sets: list[CodebookSet] = []


class Branch:
    """One conditioning of an owner.

    Its table, the id of the commit under way, if any, and the codebooks of its own commits.
    """

    __slots__ = ("codebook_set", "commit_id", "owner", "table")

    def __init__(self, owner: Owner, table: BlockTable) -> None:
        self.owner = owner
        self.table = table
        self.commit_id: int | None = None
        self.codebook_set: CodebookSet | None = None
