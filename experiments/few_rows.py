"""What `tinybert distill` keeps of a teacher with no option but the data, where rows are few.

    python experiments/few_rows.py messages --model MODEL --out runs/messages
    python experiments/few_rows.py task --task mrpc --data MRPC --teacher runs/mrpc/student --rows 200 2000 \\
        --max-length 96 --out runs/few-mrpc

messages: customer messages of three classes, made by this program: a CSV of 400 rows, and 600 rows to test on. The
teacher is MODEL after `tinybert finetune`, the student is 3x192; both by their defaults, once per seed. MODEL is a
pretrained BERT, such as all-MiniLM-L6-v2.

task: a fine-tuned teacher, and students of some rows of a task's training file, scored on its dev file: by the
defaults, from a random start, from labels alone, and, where pairs are so few that they are recombined, without this.

Every run is a command, which is printed. What is in OUT already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import statistics
from pathlib import Path

from shared import mean_sd, run_main, table, tinybert

import tinybert_jax as tb
from tinybert_jax.data.recombine import FEW_PAIRS
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.settings.tasks import TASKS, SplitName, get_task

STUDENT = "3x192"
ROWS, TEST_ROWS = 400, 600
OPENINGS = ("Hello,", "Hi there.", "Dear team,", "", "", "Good morning,", "Sorry to bother you.", "Again:")
CLOSINGS = ("Thanks.", "", "", "Please help.", "Please answer soon.", "Best regards, {name}", "I am waiting.")
SLOTS = {
    "name": ("Anna", "Tom", "Priya", "Luis", "Mei", "Olu", "Jon", "Sara"),
    "thing": ("kettle", "headset", "lamp", "backpack", "keyboard", "jacket", "blender", "router", "watch", "tent"),
    "month": ("January", "March", "May", "July", "October", "December"),
    "days": ("two days", "a week", "ten days", "three weeks", "almost a month"),
    "sum": ("12 dollars", "49.90", "more than a hundred euros", "the full price", "15 pounds"),
}
TEMPLATES = {
    "billing": (
        "I was charged {sum} twice for the {thing}.",
        "The invoice of {month} does not agree with what my bank shows.",
        "You took {sum} from my card, and I had cancelled the {thing} before.",
        "When do I get my money back for the {thing} that I returned {days} ago?",
        "My card was refused, but the amount is gone from my account.",
        "The discount code was not applied when I paid for the {thing}.",
        "Why is the subscription dearer than in {month}?",
        "I need a receipt for the {thing}, with our tax number on it.",
    ),
    "delivery": (
        "The {thing} should have come {days} ago.",
        "Tracking has said the same for {days}: left the warehouse.",
        "The driver left the {thing} with a neighbour whom I do not know.",
        "Can you send the {thing} to my office, as I have moved since {month}?",
        "The box came open, and the {thing} was not in it.",
        "I ordered a {thing} and got a {thing2}.",
        "How long does a {thing} take to reach an island in {month}?",
        "Nobody rang, and now the parcel goes back to you.",
    ),
    "technical": (
        "The {thing} does not switch on since {month}.",
        "After {days} the {thing} makes a strange noise and gets hot.",
        "The app closes by itself when I pair it with the {thing}.",
        "I cannot log in: the page says that my password has expired.",
        "The {thing} loses its connection every few minutes.",
        "Is there a manual that says how to reset the {thing}?",
        "The zip of the {thing} broke when I used it for the first time.",
        "Since the update of {month} the screen stays black.",
    ),
}


def messages(rows: int, seed: int) -> list[tuple[str, str]]:
    """Made-up customer messages (text, label). In one of 5, a second sentence is of another class."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        label = draw.choice(list(TEMPLATES))
        parts = [draw.choice(OPENINGS), draw.choice(TEMPLATES[label])]
        if draw.random() < 0.2:
            parts.append("By the way: " + draw.choice(TEMPLATES[draw.choice(list(TEMPLATES))]))
        text = " ".join(part for part in [*parts, draw.choice(CLOSINGS)] if part)
        words = {name: draw.choice(choices) for name, choices in SLOTS.items()}
        made.append((text.format(**words, thing2=draw.choice(SLOTS["thing"])), label))
    return made


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """A file with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def some_rows(source: Path, target: Path, rows: int, seed: int = 0) -> None:
    """The header and that many rows of a file, drawn by a seed."""
    header, *lines = source.read_text("utf-8-sig").rstrip("\n").split("\n")
    random.Random(seed).shuffle(lines)
    target.write_text("\n".join([header, *lines[:rows]]) + "\n", "utf-8")


def score(model: Path, task: str, source: tb.DataSource, split: SplitName, max_length: int) -> float:
    """The score that a task selects by."""
    return evaluate(str(model), task, source, split, max_length=max_length)[get_task(task).selection]


def run_messages(args: argparse.Namespace) -> None:
    """Teacher and student of the CSV, for every seed."""
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "messages.csv", messages(ROWS, seed=0))
    write_csv(args.out / "test.csv", messages(TEST_ROWS, seed=1))
    train, test = str(args.out / "messages.csv"), str(args.out / "test.csv")
    source = tb.DataSource(train=train, test=test)
    lines, shares = [], []
    for seed in args.seeds:
        data = ["--task", "classification", "--train", train, "--dev-share", "0.1", "--seed", str(seed)]
        teacher = tinybert(args.out / f"teacher-{seed}", "finetune", "--model", args.model, *data)
        options = ["--teacher", str(teacher), "--student", STUDENT, "--no-report", *data]
        student = tinybert(args.out / f"student-{seed}", "distill", *options)
        scores = [score(model, "classification", source, "test", 128) for model in (teacher, student)]
        shares.append(100 * scores[1] / scores[0])
        lines.append([str(seed), *(f"{100 * value:.1f}" for value in scores), f"{shares[-1]:.1f}"])
    print(table(["seed", "teacher", f"student {STUDENT}", "kept %"], lines))
    print(f"kept: least {min(shares):.1f} %, mean {statistics.mean(shares):.1f} %")


def run_task(args: argparse.Namespace) -> None:
    """Students of some rows of a task, drawn at random, by the recipe, from a random start, and from labels alone."""
    task, lines = get_task(args.task), []
    whole = tb.DataSource(data=args.data)
    full = score(Path(args.teacher), args.task, whole, "dev", args.max_length)
    for rows in args.rows:
        directory = args.out / f"{rows}-rows"
        directory.mkdir(parents=True, exist_ok=True)
        some_rows(Path(args.data) / task.file("train"), directory / task.file("train"), rows)
        shutil.copy(Path(args.data) / task.file("dev"), directory / task.file("dev"))
        settings = {"by default": [], "random start": ["--start", "random"], "labels alone": ["--stage", "supervised"]}
        if len(task.text_columns) == 2 and rows < FEW_PAIRS:
            settings["no recombined pairs"] = ["--recombine-to", "0"]
        data = ["--task", args.task, "--data", str(directory), "--max-length", str(args.max_length)]
        for name, options in settings.items():
            scores = []
            for seed in args.seeds:
                out = directory / f"{name.replace(' ', '-')}-{seed}"
                chosen = ["--teacher", args.teacher, "--student", STUDENT, "--no-report", *data]
                student = tinybert(out, "distill", *chosen, "--seed", str(seed), *options)
                scores.append({"score": score(student, args.task, whole, "dev", args.max_length)})
            kept = 100 * statistics.mean(result["score"] for result in scores) / full
            lines.append([str(rows), name, mean_sd(scores, "score"), f"{kept:.1f}"])
    print(f"{args.task}, {task.selection}; teacher {100 * full:.1f}")
    print(table(["rows", "student", "score", "kept %"], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    made = kinds.add_parser("messages", help="a CSV of 400 customer messages, teacher and student by their defaults")
    made.add_argument("--model", required=True, help="a pretrained BERT")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.set_defaults(run=run_messages)
    known = kinds.add_parser("task", help="some rows of a task, behind a teacher that is there")
    known.add_argument("--task", required=True, choices=list(TASKS))
    known.add_argument("--data", required=True, help="directory in the GLUE layout")
    known.add_argument("--teacher", required=True, help="fine-tuned on the task")
    known.add_argument("--rows", type=int, nargs="+", default=[200, 2000])
    known.add_argument("--max-length", type=int, default=128)
    known.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known.set_defaults(run=run_task)
    for kind in (made, known):
        kind.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_main(main)
