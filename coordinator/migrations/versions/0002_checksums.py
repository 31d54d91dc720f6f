"""A checksum in every row, a chain over the facts of a run, a count of transactions."""

import sqlalchemy as sql
from alembic import op

from coordinator.checksums import FIRST_LINK, link, row_digest

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = {
    "studies": ("config_hash", "study_id", "content"),
    "runs": (
        "run_id",
        "study_id",
        "config_hash",
        "request",
        "signature",
        "chain",
        "created_unix",
        "ended",
    ),
    "epochs": ("task", "epoch"),
    "releases": ("run_id", "manifest", "signature", "chain"),
}


def upgrade() -> None:
    for table in _COLUMNS:
        op.add_column(table, sql.Column("digest", sql.LargeBinary(32)))
    op.add_column("facts", sql.Column("unix", sql.Float))
    op.add_column("facts", sql.Column("link", sql.LargeBinary(32)))
    op.create_table(
        "heads",
        sql.Column("run_id", sql.String(63), primary_key=True),
        sql.Column("facts", sql.Integer, nullable=False),
        sql.Column("link", sql.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "meter",
        sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("changes", sql.BigInteger, nullable=False),
    )
    db = op.get_bind()
    for table, columns in _COLUMNS.items():
        key = columns[0]
        for row in db.execute(sql.text(f"SELECT * FROM {table}")).mappings().all():  # noqa: S608
            values = [_item(column, row[column]) for column in columns]
            db.execute(
                sql.text(f"UPDATE {table} SET digest = :digest WHERE {key} = :key"),  # noqa: S608
                {"digest": row_digest(table, *values), "key": row[key]},
            )
    for run_id in db.execute(sql.text("SELECT run_id FROM runs")).scalars().all():
        _chain(db, run_id)


def _item(column: str, value: object) -> str | bytes | int | float:
    if isinstance(value, memoryview):
        return bytes(value)
    if column == "ended":
        return int(bool(value))
    if column == "created_unix":
        return float(str(value))
    return value  # type: ignore[return-value]


def _chain(db: sql.Connection, run_id: str) -> None:
    last, count = FIRST_LINK, 0
    query = sql.text("SELECT seq, body FROM facts WHERE run_id = :run ORDER BY seq")
    update = sql.text("UPDATE facts SET link = :link WHERE run_id = :run AND seq = :seq")
    for count, (seq, body) in enumerate(db.execute(query, {"run": run_id}).all(), 1):  # noqa: B007
        last = link(run_id, seq, last, bytes(body), 0.0)
        db.execute(update, {"link": last, "run": run_id, "seq": seq})
    if not count:
        return
    insert = sql.text("INSERT INTO heads (run_id, facts, link) VALUES (:run, :facts, :link)")
    db.execute(insert, {"run": run_id, "facts": count, "link": last})


def downgrade() -> None:
    op.drop_table("meter")
    op.drop_table("heads")
    op.drop_column("facts", "link")
    op.drop_column("facts", "unix")
    for table in _COLUMNS:
        op.drop_column(table, "digest")
