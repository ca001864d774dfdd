"""datatrove's filters on a file of texts: what each keeps, and how long all of them take. Runs in the peers' Python.

Usage: curation_peer.py TEXTS.json DECISIONS.json — texts are a list of strings; DECISIONS maps a filter to a list of
booleans. The last line of output is {"seconds": CPU seconds of all filters in one pipeline, "version": …}.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import split_into_words


def kept(answer: object) -> bool:
    """A filter answers True, or (False, reason)."""
    return answer is True


def main() -> None:
    """Decide, then time the pipeline from cold caches: it stops at the first filter that drops a document, as FineWeb's does."""
    texts = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    filters = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=True),
        "fineweb": FineWebQualityFilter(),
    }
    split_into_words("Load the splitter.")
    begin = time.process_time()
    for text in texts:
        document = Document(text=text, id="")
        for one in filters.values():
            if not kept(one.filter(document)):
                break
    seconds = time.process_time() - begin
    decisions: dict[str, list[bool]] = {name: [] for name in filters}
    for text in texts:
        for name, one in filters.items():
            decisions[name].append(kept(one.filter(Document(text=text, id=""))))
    Path(sys.argv[2]).write_text(json.dumps(decisions), "utf-8")
    print(json.dumps({"seconds": seconds, "version": version("datatrove")}))


if __name__ == "__main__":
    main()
