"""Download with pooch that resumes after a cut connection and never leaves a wrong file behind."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

TIMEOUT = (10.0, 30.0)
CHUNK = 1 << 12  # what a cut connection can lose: an incomplete chunk is not handed out


def download(file: Path, sha256: str, mirrors: tuple[str, ...]) -> Path:
    """Fetch `file.name` from the first mirror that gives it with the right checksum; returns `file`.

    What has arrived is kept beside it as ``<name>.part`` when the connection is cut, and the next attempt asks only for
    the rest (HTTP Range), also from another mirror. A file with another checksum is deleted at once. Mirrors are
    folders on the web, each ending in "/", tried in this order; OSError where none gave the file says why for each.
    """
    import pooch
    import requests

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    reasons = []
    for mirror in mirrors:
        resumed = part.exists()
        for _ in range(2 if resumed else 1):  # a wrong checksum after a resume may be the old part's fault: once afresh
            try:
                pooch.retrieve(
                    mirror + file.name,
                    known_hash=f"sha256:{sha256}",
                    fname=file.name,
                    path=file.parent,
                    downloader=_Resuming(part),
                )
                return file
            except ValueError:
                reason = "its sha256 is not the expected one, so it was deleted"
            except (requests.Timeout, requests.ConnectionError):
                reason = "no connection"
                break
            except OSError as error:
                reason = " ".join(str(error).split())
                break
        reasons.append(f"{mirror}: {reason}")
    raise OSError("; ".join(reasons))


class _Resuming:
    """A pooch downloader that appends to a ``.part`` file, and moves it to pooch's place when it is complete."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """Download `url` to the path `output_file`, as `pooch.retrieve` asks."""
        import requests

        while True:
            before = self._size()
            try:
                self._append(url, before)
                break
            except requests.RequestException:
                if self._size() <= before:  # go on only as long as every attempt brings something
                    raise
        os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _append(self, url: str, have: int) -> None:
        """One request for what is missing after the first `have` bytes."""
        import requests
        from tqdm import tqdm

        headers = {"Accept-Encoding": "identity"}  # the .gz itself, not unpacked on the way
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable and have:
                if _total(response) != have:
                    self.part.unlink()
                    self._append(url, 0)
                return
            response.raise_for_status()
            start = have if response.status_code == requests.codes.partial_content else 0
            total = _total(response)
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=self.part.stem)
            with bar, open(self.part, "ab" if start else "wb") as sink:
                for chunk in response.iter_content(CHUNK):
                    sink.write(chunk)
                    bar.update(len(chunk))
        if total is not None and self._size() < total:
            raise requests.exceptions.ChunkedEncodingError(f"it ended after {self._size()} of {total} bytes")


def _total(response: "requests.Response") -> int | None:
    """Size of the whole file as the server states it, or None."""
    stated = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(stated) if stated.isdecimal() else None
