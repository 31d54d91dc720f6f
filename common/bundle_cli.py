"""`fedcare bundle verify|show|key`: what a hospital without internet is handed.

`verify` needs the bundle and the release key that the hospital pinned, and no network.
Making a bundle is the consortium's `make bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.bundle import Contents, fingerprint, load_pinned_key, make_key
from common.bundle_check import facts, verify
from common.commands import JsonFlag, Outcome, command, group
from common.text import escape

app = group("Verify and unpack a bundle for installing without a network.")

Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The .tar, or the folder it was unpacked into.")
]


def _data(contents: Contents) -> dict[str, object]:
    return {
        "version": contents.version,
        "commit": contents.commit,
        "dirty": contents.dirty,
        "created": contents.created,
        "platform": contents.platform,
        "base_image": contents.base_image,
        "signer": contents.signer,
        "files": len(contents.files),
        "bytes": sum(entry.size for entry in contents.files),
        "wheels": len(contents.wheels),
        "images": [entry.path for entry in contents.images],
    }


def _lines(contents: Contents) -> list[str]:
    size = sum(entry.size for entry in contents.files) / 1e6
    changed = ", with changes that no commit holds" if contents.dirty else ""
    images = ", ".join(entry.path for entry in contents.images) or "none; build them from source/"
    return [
        f"fedcare {contents.version}, commit {contents.commit[:12]}{changed}, {contents.created}",
        f"  for:     {contents.platform}, base image {contents.base_image} (not in the bundle)",
        f"  holds:   {len(contents.files)} files, {size:.0f} MB; {len(contents.wheels)} wheels",
        f"  images:  {images}",
    ]


@app.command("verify")
@command
def verify_command(
    bundle: Bundle,
    *,
    key: Annotated[Path, typer.Option(help="The consortium's release key, as you pinned it.")],
    extract: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Unpack into this new folder, if all is well."),
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Check signature, digests and bill of materials; nothing is unpacked before."""
    del as_json
    pinned = load_pinned_key(key)
    contents = verify(bundle, pinned, extract)
    lines = _lines(contents)
    lines.append(f"verified: signed by {fingerprint(pinned)}")
    if extract is not None:
        lines.append(f"unpacked: {extract}/")
    return Outcome({"verified": True, **_data(contents), "extracted": extract}, "\n".join(lines))


@app.command("show")
@command
def show_command(
    bundle: Bundle,
    *,
    key: Annotated[
        Path | None, typer.Option(help="The pinned release key, to check the list's signature.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show what a bundle says of itself; `verify` is what checks it."""
    del as_json
    told = facts(bundle, load_pinned_key(key) if key is not None else None)
    lines = _lines(told.contents)
    lines.append("  licences of the wheels:")
    ordered = sorted(told.licences.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"    {count:>3}  {escape(name)}" for name, count in ordered]
    state = "checked" if key is not None else "not checked; give --key"
    lines.append(f"signature of the list: {state}")
    data = {**_data(told.contents), "licences": dict(ordered), "signature_checked": key is not None}
    return Outcome(data, "\n".join(lines))


@app.command("key")
@command
def key_command(
    out: Annotated[Path, typer.Argument(metavar="OUT.pem", help="Where the key is written.")],
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Make the consortium's release key."""
    del as_json
    public, digest = make_key(out)
    text = (
        f"{out}  the release key; keep it offline, whoever has it can sign a bundle\n"
        f"{public}  hospitals pin this file\n"
        f"fingerprint {digest}; tell it to the hospitals by another way than the file"
    )
    return Outcome({"key": out, "public": public, "fingerprint": digest}, text)
