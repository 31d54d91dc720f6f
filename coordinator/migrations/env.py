"""Alembic's entry point; `coordinator.store.migrate` passes the connection in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
