"""`evaluate --search`: searches for the best decoding on a split, prints the results, and saves the best if asked.

The search itself is `captioning.training.decoding_search`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.errors import UsageError
from captioning.training.search_settings import SearchSettings
from jobs.evaluating.table import show_search

if TYPE_CHECKING:
    from captioning.captioner import Captioner
    from captioning.data.shards import ShardSet


def folder_to_save(model: str | None) -> Path:
    """The checkpoint's folder that `--save` writes to. Raises `UsageError` if it is not a writable local folder."""
    from captioning.models.checkpoint_config import CONFIG
    from captioning.refs import bundled_names

    folder = Path(model).expanduser() if model else None
    if folder is None or model in bundled_names() or not folder.is_dir():
        raise UsageError(
            f"--save writes into a checkpoint's folder on this machine, and --model {model or '(the bundled one)'} is "
            "not one. Copy the checkpoint into a folder and pass that."
        )
    if not os.access(folder, os.W_OK) or not os.access(folder / CONFIG, os.W_OK):
        raise UsageError(f"--save cannot write {folder / CONFIG}. Check its permissions, or copy the checkpoint.")
    return folder


def evaluate_search(
    captioner: "Captioner",
    shards: "ShardSet",
    split: str,
    settings: SearchSettings,
    batch_size: int,
    folder: Path | None,
) -> list[dict[str, Any]]:
    """Search, print a table, save the best decoding into `folder` if given, and return the record of the search."""
    from captioning.training.decoding_search import save_decoding, search_decoding, search_record
    from jobs.progress import Progress

    current = captioner.decoding
    with Progress(0) as progress:

        def on_progress(done: int, total: int) -> None:
            progress.total = total
            progress.add(done - progress.done, 0)

        tried = search_decoding(captioner, shards, split, settings, batch_size=batch_size, on_progress=on_progress)
    images = int(tried[0].scores["num_images"])
    print(f"{captioner.name} on the {split} split: {len(tried)} decodings tried on {images:,} images, chosen one first")
    show_search(tried, current)
    if folder is not None:
        save_decoding(folder, tried)
        print(f"Saved as the default decoding of {folder}; its model card may still name the old one.")
    else:
        chosen = tried[0].decoding
        print(
            f"To use the first: --set decoding.beam_size={chosen.beam_size} "
            f"--set decoding.length_penalty={chosen.length_penalty:g} "
            f"--set decoding.repetition_penalty={chosen.repetition_penalty:g} "
            f"--set decoding.no_repeat_ngram_size={chosen.no_repeat_ngram_size}; --save saves it in a checkpoint."
        )
    return search_record(tried)
