"""Studies, runs, facts, epochs and releases."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sql.Column("config_hash", sql.LargeBinary(32), primary_key=True),
        sql.Column("study_id", sql.String(63), nullable=False, index=True),
        sql.Column("content", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "runs",
        sql.Column("run_id", sql.String(63), primary_key=True),
        sql.Column("study_id", sql.String(63), nullable=False),
        sql.Column("config_hash", sql.LargeBinary(32), nullable=False),
        sql.Column("request", sql.String(400), nullable=False, unique=True),
        sql.Column("signature", sql.LargeBinary, nullable=False),
        sql.Column("chain", sql.LargeBinary, nullable=False),
        sql.Column("created_unix", sql.Float, nullable=False),
        sql.Column("ended", sql.Boolean, nullable=False),
    )
    op.create_table(
        "facts",
        sql.Column("run_id", sql.String(63), primary_key=True),
        sql.Column("seq", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("body", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "epochs",
        sql.Column("task", sql.String(63), primary_key=True),
        sql.Column("epoch", sql.BigInteger, nullable=False),
    )
    op.create_table(
        "releases",
        sql.Column("run_id", sql.String(63), primary_key=True),
        sql.Column("manifest", sql.LargeBinary, nullable=False),
        sql.Column("signature", sql.LargeBinary, nullable=False),
        sql.Column("chain", sql.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for table in ("releases", "epochs", "facts", "runs", "studies"):
        op.drop_table(table)
