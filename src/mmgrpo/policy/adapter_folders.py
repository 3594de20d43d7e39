"""The adapters of a policy in training as PEFT folders, a new one for each version, for engines that load files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mmgrpo.errors import UserError
from mmgrpo.policy.merging import WEIGHTS, adapter_folder
from mmgrpo.policy.sampler import SamplingRequest


class AdapterFolders:
    """Writes to a temporary folder (in `within`), and numbers the adapters, so that none is taken for another."""

    def __init__(self, within: Path | None = None):
        if within is not None:
            within.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(prefix="adapters-", dir=within)
        self.folder = Path(self._scratch.name)
        self._version = 0
        self._current: dict[str, Path] = {}
        self._numbers: dict[tuple[Path, int], int] = {}  # by folder and the time when it was written

    def write(self, policy) -> None:
        """Keep the adapters of `policy` (a PEFT model) as they are now; those of the version before go."""
        old = self.folder / str(self._version)
        self._version += 1
        new = self.folder / str(self._version)
        policy.save_pretrained(new, save_embedding_layers=False)  # else it asks the hub each time
        self._current = {name: adapter_folder(new, name) for name in policy.peft_config}
        shutil.rmtree(old, ignore_errors=True)

    def of(self, request: SamplingRequest) -> tuple[int, Path] | None:
        """Number (from 1) and folder of the adapter that answers a request; None where the original weights do."""
        folder = request.weights or self._current.get(request.adapter)
        if folder is None:
            return None
        try:
            written = (folder / WEIGHTS).stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"The adapter in {folder} can't be read ({error}): train it again.") from None
        return self._numbers.setdefault((folder, written), len(self._numbers) + 1), folder.resolve()
