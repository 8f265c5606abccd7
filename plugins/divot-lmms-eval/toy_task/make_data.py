"""Turn shards of the toy world into videos and questions: python make_data.py SHARDS OUTPUT [LIMIT]."""

import json
import sys
import tarfile
from pathlib import Path


def main(shards: Path, output: Path, limit: int = 256) -> None:
    """Write `questions.jsonl`, `rounds.jsonl` with one row per video, and the videos that they name.

    Args:
        shards: Folder of tars, such as `data/toy/held_out`.
        output: Folder of the result.
        limit: Most videos.
    """
    output.mkdir(parents=True, exist_ok=True)
    texts, rows = dict[str, dict](), list[dict]()
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, suffix = member.name.rsplit(".", 1)
                content = tar.extractfile(member).read()
                if suffix == "json":
                    texts[key] = json.loads(content)
                else:
                    (output / f"{key}.{suffix}").write_bytes(content)
    answers = dict[str, set[str]]()
    for text in texts.values():
        for turn in text["questions"]:
            answers.setdefault(turn["question"], set()).add(turn["answer"])
    rounds = list[dict]()
    for key, text in list(texts.items())[:limit]:
        video = str((output / f"{key}.mp4").resolve())
        rounds.append({"video": video, **{turn["attribute"]: turn["answer"] for turn in text["questions"]}})
        for turn in text["questions"]:
            options = sorted(answers[turn["question"]])
            gold = options.index(turn["answer"])
            rows.append({"video": video, **turn, "options": options, "gold": gold})
    for name, written in (("questions.jsonl", rows), ("rounds.jsonl", rounds)):
        (output / name).write_text("".join(json.dumps(row) + "\n" for row in written))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:4]))
