"""JSON files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from mmgrpo.errors import UserError


def write_json(content: Any, file: Path, *, private: bool = False) -> Path:
    """Write JSON to `file` by writing beside it and renaming; raises UserError where the disk is full.

    `private`: its owner alone can read it.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as stream:
            if private:
                os.chmod(beside, 0o600)
            json.dump(content, stream, ensure_ascii=False, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"The disk is full, so {file} was not written; what was there before is as it was. "
            "Make room and run the same command again."
        ) from None
    finally:
        beside.unlink(missing_ok=True)
    return file
