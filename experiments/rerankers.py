"""What small rerankers keep of a larger one, on queries that are made from running text.

    python experiments/rerankers.py --model MINILM --text wikitext-2-valid.txt --dev-text wikitext-2-test.txt \\
        --out runs/rerankers

The queries are those of the inverse cloze task (Lee et al., arXiv 1906.00300): a query is a sentence of a paragraph,
and the relevant passage is the rest of the paragraph. The other passages of a query are other paragraphs, at most half
of them of the same article. The texts are files in the form of WikiText, whose articles begin with ` = Title = `.

The teacher is MODEL, a pretrained BERT, after `tinybert finetune --task ranking`. Students are distilled from it, and
others learn from the labels alone. Every student is exported in int8 and scored as ONNX too.

Training commands are printed. What is in OUT already is not run again.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

from shared import Scores, mean_sd, run_main, table, tinybert

import tinybert_jax as tb
from tinybert_jax.inference.evaluate import evaluate

TASK = "ranking"
LEAST_SENTENCES, LEAST_WORDS = 3, 5  # of a paragraph, and of each of its sentences
QUERY_WORDS, PASSAGE_WORDS = 20, 40  # the most


def paragraphs(text: str) -> dict[str, list[list[str]]]:
    """The paragraphs of each article that have enough sentences, as lists of sentences."""
    articles: dict[str, list[list[str]]] = {}
    title = ""
    for line in map(str.strip, text.splitlines()):
        if heading := re.fullmatch("= ([^=]+) =", line):
            title = heading[1]
        elif title and line and not line.startswith("="):
            plain = line.replace('"', " ").replace("<unk>", " ")  # WikiText's sign for rare words
            sentences = [part.strip() for part in plain.split(" . ") if len(part.split()) >= LEAST_WORDS]
            if len(sentences) >= LEAST_SENTENCES:
                articles.setdefault(title, []).append(sentences)
    return articles


def cut(text: str, words: int) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


def queries(text: str, passages: int, most: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """Rows (query, passage, relevance) of at most `most` queries, with so many passages each. One is relevant."""
    draw = random.Random(seed)
    articles = paragraphs(text)
    numbered = [(title, number) for title, each in articles.items() for number in range(len(each))]
    rows = []
    for title, number in draw.sample(numbered, min(most, len(numbered))):
        sentences = articles[title][number]
        place = draw.randrange(len(sentences))
        query = cut(sentences[place], QUERY_WORDS)
        rest = [*sentences[:place], *sentences[place + 1 :]]
        near = [key for key in numbered if key[0] == title and key[1] != number]
        far = [key for key in numbered if key[0] != title]
        chosen = draw.sample(near, min(len(near), (passages - 1) // 2))
        chosen += draw.sample(far, passages - 1 - len(chosen))
        others = [articles[other][index] for other, index in chosen]
        for passage, relevance in [(rest, 1), *((other, 0) for other in others)]:
            rows.append((query, cut(" . ".join(passage), PASSAGE_WORDS), relevance))
    return rows


def write_rows(path: Path, rows: list[tuple[str, str, int]]) -> None:
    """A file with the columns of the task."""
    lines = ["query\tpassage\tlabel", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def scores_of(models: list[Path], dev: Path, max_length: int) -> Scores:
    """The scores of each model, and under `int8` those of its ONNX file in int8."""
    source, scores = tb.DataSource(dev=str(dev)), []
    for model in models:
        exported = model.parent / "int8"
        if not exported.is_dir():
            tb.export_model(str(model), exported, ("onnx-int8",))
        plain, int8 = (evaluate(str(path), TASK, source, max_length=max_length) for path in (model, exported))
        scores.append({**plain, "int8": int8["ndcg_at_10"]})
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a pretrained BERT: a directory or hub id")
    parser.add_argument("--text", type=Path, required=True, help="articles to train on, in the form of WikiText")
    parser.add_argument("--dev-text", type=Path, required=True, help="other articles, to score")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", nargs="*", default=["3x384", "3x192"], help="sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--queries", type=int, default=2000, help="the most to train on")
    parser.add_argument("--passages", type=int, default=4, help="for each query to train on")
    parser.add_argument("--dev-queries", type=int, default=300, help="the most to score")
    parser.add_argument("--dev-passages", type=int, default=10, help="for each query to score")
    parser.add_argument("--max-length", type=int, default=96, help="tokens of a pair")
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--transformer-steps", type=int, default=300)
    parser.add_argument("--prediction-steps", type=int, default=400)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, dev = args.out / "train.tsv", args.out / "dev.tsv"
    for path, text, passages, most in (
        (train, args.text, args.passages, args.queries),
        (dev, args.dev_text, args.dev_passages, args.dev_queries),
    ):
        write_rows(path, queries(text.read_text("utf-8"), passages, most))
    data = ["--task", TASK, "--train", str(train), "--dev", str(dev), "--max-length", str(args.max_length)]
    data += ["--batch-size", "8"]
    length = ["--max-steps", str(args.teacher_steps), "--learning-rate", "1e-4", "--evaluate-every", "200"]
    teacher = tinybert(args.out / "teacher", "finetune", "--model", args.model, *data, *length)
    steps = ["--prediction-steps", str(args.prediction_steps), "--evaluate-every", "200", "--no-report"]
    both = ["--transformer-steps", str(args.transformer_steps), *steps]
    lines = [("teacher", scores_of([teacher], dev, args.max_length))]
    for size in args.students:
        for name, options in ((size, both), (f"{size}, labels alone", ["--stage", "supervised", *steps])):
            models = []
            for seed in args.seeds:
                chosen = ["--teacher", str(teacher), "--student", size, *data, *options, "--seed", str(seed)]
                folder = f"{name.replace(',', '').replace(' ', '-')}-{seed}"
                models.append(tinybert(args.out / folder, "distill", *chosen))
            lines.append((name, scores_of(models, dev, args.max_length)))
    best = lines[0][1][0]["ndcg_at_10"]
    rows = []
    for name, scores in lines:
        kept = 100 * sum(score["ndcg_at_10"] for score in scores) / len(scores) / best
        metrics = [mean_sd(scores, metric) for metric in ("ndcg_at_10", "mrr_at_10", "int8")]
        rows.append([name, metrics[0], f"{kept:.1f}", *metrics[1:]])
    print(table(["model", "nDCG@10", "kept %", "MRR@10", "nDCG@10 in int8"], rows))


if __name__ == "__main__":
    run_main(main)
