"""What small models keep of an embedding model: Spearman's correlation on pairs of texts, bytes and multiply-adds.

    python experiments/embeddings.py --teacher all-MiniLM-L6-v2 --sentences sentences.txt --dev STS-B/dev.tsv \\
        --out runs/embeddings

Students of the given sizes are distilled by `tinybert distill --task embedding` with no option but the data, once per
seed. Beside them stand models that nothing trains:

- the teacher cut to its first layers, as they are;
- the teacher with its vectors projected on their principal directions over the sentences, which are a dense layer;
- a static table: the mean of the teacher's word embeddings over a text's tokens, special ones left out.

With --matryoshka-dims, other students learn vectors that can be cut, and all vectors are also scored by their first
numbers.

Training commands are printed. What is in OUT already is not run again, and a run that was stopped goes on.
--transformer-steps and --prediction-steps make it shorter. A table is printed at the end, and written to table.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shared import Scores, mean_sd, run_main, table, tinybert

import tinybert_jax as tb
from tinybert_jax.batch import Params
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.layers import word_table
from tinybert_jax.models.parameters import count_parameters, encoder_macs
from tinybert_jax.settings.tasks import SplitName, get_task
from tinybert_jax.students.start import copy_layers
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.projected import principal_directions, project_vectors

TASK = "embedding"


class Line(NamedTuple):
    """A line of the table."""

    name: str
    scores: Scores  # also those of vectors that are cut, by their lengths
    width: int  # of the vectors
    parameters: int
    macs: float  # multiply-adds of a text of the dev set's mean length


def load_embedding(directory: str | Path) -> tuple[BertConfig, Params]:
    """Config and parameters of an embedding model, without what its vectors do not read."""
    config, params = tb.load_hf(directory)
    if not HEADS[TASK].is_in(params, config):
        raise tb.InputError(f"{directory}: holds no {HEADS[TASK].title}: name an embedding model")
    encoder = {name: part for name, part in params["encoder"].items() if name != "pooler"}
    dense = {name: part for name, part in params.items() if name == EMBEDDING_DENSE}
    return config, {"encoder": encoder} | dense


def scores_of(directory: Path, source: tb.DataSource, max_length: int, dims: list[int]) -> dict[str, float]:
    """The model's score, and under "at" and their length those of its vectors that are cut."""
    pairs = tb.DataSource(dev=source.dev)
    scores = evaluate(str(directory), TASK, pairs, max_length=max_length)
    for dim in dims:
        cut_scores = evaluate(str(directory), TASK, pairs, max_length=max_length, truncate_dim=dim)
        scores[f"at {dim}"] = cut_scores["spearman"]
    return scores


def line_of(
    name: str, directories: list[Path], source: tb.DataSource, max_length: int, tokens: float, dims: list[int]
) -> Line:
    """Score and size of a model, or of the same one from several seeds."""
    scores = [scores_of(path, source, max_length, dims) for path in directories]
    config, params = load_embedding(directories[0])
    dense = params.get(EMBEDDING_DENSE, {"kernel": np.zeros(0)})["kernel"].size
    macs = encoder_macs(config, params, tokens) + dense
    return Line(name, scores, config.vector_width, count_parameters(params), macs)


def cut(teacher: str, layers: int, out: Path) -> Path:
    """The directory of the teacher with its first layers alone."""
    if not out.is_dir():
        config, params = load_embedding(teacher)
        short = dataclasses.replace(config, num_hidden_layers=layers)
        tb.save_hf(out, short, copy_layers(short, config, params, "bottom"), tb.load_tokenizer(teacher, config))
    return out


def projected(teacher: str, width: int, source: tb.DataSource, max_length: int, out: Path) -> Path:
    """The directory of the teacher with a dense layer to the principal directions of its training texts' vectors."""
    if not out.is_dir():
        config, params = load_embedding(teacher)
        predictor = tb.load_predictor(teacher, max_length, 64, TASK)
        directions = principal_directions(predictor.logits(split_of(predictor, source, "train").tokens), width)
        config, params = project_vectors(config, params, directions)
        tb.save_hf(out, config, params, tb.load_tokenizer(teacher, config))
    return out


def split_of(predictor: tb.Predictor, source: tb.DataSource, split: SplitName) -> Split:
    """A split, in the predictor's tokens."""
    return load_split(get_task(TASK), source, split, predictor.tokenizer, predictor.max_length, None)


def word_means(words: np.ndarray, tokens: Tokens, left_out: list[int]) -> np.ndarray:
    """The mean [n, d] of the rows of a table that are each text's tokens; 0 where all of them are left out."""
    vectors = np.zeros((len(tokens), words.shape[1]), np.float32)
    for number, ids in enumerate(np.split(tokens.input_ids, tokens.offsets[1:-1])):
        if len(kept := ids[~np.isin(ids, left_out)]):
            vectors[number] = words[kept].mean(axis=0)
    return vectors


def untrained(args: argparse.Namespace, source: tb.DataSource) -> tuple[list[Line], float]:
    """The lines of the teacher and of what is made of it without training, and the mean tokens of a dev text."""
    predictor = tb.load_predictor(args.teacher, args.max_length, 64, TASK)
    dev = split_of(predictor, source, "dev")
    tokens, config = float(dev.tokens.lengths.mean()), predictor.config
    models = {"teacher": Path(args.teacher)}
    for layers in args.first_layers:
        models[f"its first {layers} layers"] = cut(args.teacher, layers, args.out / f"first-{layers}")
    for width in args.widths:
        out = args.out / f"projected-{width}"
        models[f"projected to {width}"] = projected(args.teacher, width, source, args.max_length, out)
    dims = args.matryoshka_dims
    lines = [line_of(name, [path], source, args.max_length, tokens, dims) for name, path in models.items()]
    words = np.asarray(word_table(config, predictor.params["encoder"]["embeddings"]))
    vectors = word_means(words, dev.tokens, predictor.tokenizer.all_special_ids)
    scores = dev.score(vectors) | {f"at {dim}": dev.score(vectors[:, :dim])["spearman"] for dim in dims}
    lines.append(Line("mean of word embeddings", [scores], words.shape[1], words.size, 0.0))
    return lines, tokens


def students(args: argparse.Namespace, source: tb.DataSource, tokens: float) -> list[Line]:
    """The line of each student, distilled where it is not there."""
    data = ["--unlabelled", args.sentences, "--dev", args.dev, "--max-length", str(args.max_length)]
    for option in ("transformer_steps", "prediction_steps", "evaluate_every"):
        if (steps := getattr(args, option)) is not None:
            data += [f"--{option.replace('_', '-')}", str(steps)]
    kinds: dict[str, list[str]] = {"": []} | {
        f"-to-{width}": ["--embedding-width", str(width)] for width in args.embedding_widths
    }
    if args.matryoshka_dims:
        dims = map(str, args.matryoshka_dims)
        kinds["-to-cut"] = ["--embedding-loss", "similarity", "--matryoshka-dims", *dims]
    lines = []
    for size, (kind, learnt) in itertools.product(args.students, kinds.items()):
        name, directories = f"{size}{kind}", []
        for seed in args.seeds:
            options = ["--task", TASK, "--teacher", args.teacher, "--student", size, *data, *learnt]
            out = args.out / f"{name}-{seed}"
            directories.append(tinybert(out, "distill", *options, "--no-report", "--seed", str(seed)))
        line = line_of(f"student {name}", directories, source, args.max_length, tokens, args.matryoshka_dims)
        lines.append(line)
        print(markdown([lines[-1]], None), flush=True)
    return lines


def markdown(lines: list[Line], teacher: Line | None) -> str:
    """The table of lines; with the teacher's, also the share of its score that each keeps."""
    cut_to = [name for name in lines[0].scores[0] if name.startswith("at ")]
    header = ["model", "Spearman", "kept %", *cut_to, "numbers a vector", "MB in float32"]
    header.append("million multiply-adds a text")
    rows = []
    for line in lines:
        mean = statistics.mean(score["spearman"] for score in line.scores)
        kept = "" if teacher is None else f"{100 * mean / teacher.scores[0]['spearman']:.1f}"
        sizes = [str(line.width), f"{4e-6 * line.parameters:.1f}", f"{1e-6 * line.macs:.1f}"]
        short = [mean_sd(line.scores, name) for name in cut_to]
        rows.append([line.name, mean_sd(line.scores, "spearman"), kept, *short, *sizes])
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="an embedding model: a directory or hub id")
    parser.add_argument("--sentences", required=True, help="a .txt with a text a line, to learn from")
    parser.add_argument("--dev", required=True, help="pairs with a similarity, such as STS-B's dev.tsv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", nargs="*", default=["6x192", "3x384", "3x192"], help="sizes")
    parser.add_argument(
        "--embedding-widths", type=int, nargs="*", default=[], help="also students that learn projected vectors"
    )
    parser.add_argument(
        "--matryoshka-dims", type=int, nargs="*", default=[], help="lengths to which vectors are cut; also trains some"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first-layers", type=int, nargs="*", default=[3], help="of the teacher, untrained")
    parser.add_argument("--widths", type=int, nargs="*", default=[192], help="to which its vectors are projected")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--transformer-steps", type=int, help="of the first stage; default: the recipe's")
    parser.add_argument("--prediction-steps", type=int, help="of the second stage; default: the recipe's")
    parser.add_argument("--evaluate-every", type=int, help="steps between scores; default: the recipe's")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = tb.DataSource(unlabelled=(args.sentences,), dev=args.dev)
    lines, tokens = untrained(args, source)
    teacher = lines[0]
    print(markdown(lines, teacher), flush=True)
    lines += students(args, source, tokens)
    written = f"{markdown(lines, teacher)}\n\nDev texts have {tokens:.1f} tokens on average.\n"
    (args.out / "table.md").write_text(written)
    print(f"\n{written}", end="")


if __name__ == "__main__":
    run_main(main)
