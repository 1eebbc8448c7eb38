"""Who holds pages: owners with a reservation, and their branches."""

from qvg_engine.block_manager.block_table import BlockTable


class Owner:
    """A stream's account: pages reserved, pages in use (a shared page counts once), branches."""

    __slots__ = ("branch_ids", "num_used", "owner_id", "reserved_pages")

    def __init__(self, owner_id: str, reserved_pages: int) -> None:
        self.owner_id = owner_id
        self.reserved_pages = reserved_pages
        self.num_used = 0
        self.branch_ids: set[int] = set()


class Branch:
    """One conditioning of an owner: its table, and the id of the commit under way, if any."""

    __slots__ = ("commit_id", "owner", "table")

    def __init__(self, owner: Owner, table: BlockTable) -> None:
        self.owner = owner
        self.table = table
        self.commit_id: int | None = None
