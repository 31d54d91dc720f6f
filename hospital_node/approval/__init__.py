"""Approval of studies by the people whom the hospital's policy names (protocol, section 10.8).

    records.py    signed statements as files, one each, never changed
    standing.py   what they come to for one study at one moment; pure
    gate.py       the running node's view: asked before every step that begins something
    key.py        an approver's key file
    cases.py      the studies this node was offered, by whatever name a person calls them
    page.py       one study for a privacy officer, in plain words
    desk.py       what the commands do
    cli.py        `fedcare node approvals ...`

The folder is written by the commands while the node serves, and read by both. What is in
it is believed only as far as a signature by a key of the policy goes.
"""
