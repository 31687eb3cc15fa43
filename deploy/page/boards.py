"""Reads event files as TensorBoard does: by its own package, under target/tools (25 MB downloaded)."""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tools  # noqa: E402

REQUIREMENTS = Path(__file__).resolve().with_name("requirements.txt")


def packages() -> Path:
    """The folder with TensorBoard's package. Most of what it depends on is for its server."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = tools.PLACE / f"tensorboard{version}-{digest}"
    if not place.is_dir():
        print("tools: TensorBoard's reader (25 MB, once)", file=sys.stderr)
        tools.PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tools.PLACE) as scratch:
            made = Path(scratch) / "packages"
            tools.pip("install", "--no-compile", "--no-deps", "--target", str(made), "--requirement",
                      str(REQUIREMENTS))
            tools.put(made, place)
    return place


def read(folder: Path) -> Any:
    """All that the event files in `folder` tell, as TensorBoard would show it."""
    if str(packages()) not in sys.path:
        sys.path.insert(0, str(packages()))
    from tensorboard.backend.event_processing import event_accumulator as events
    everything = {kind: 0 for kind in (events.SCALARS, events.IMAGES, events.TENSORS)}
    board = events.EventAccumulator(str(folder), size_guidance=everything)
    board.Reload()
    return board
